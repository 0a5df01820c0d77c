package android.graphics

import java.io.InputStream

class Bitmap private constructor() {
    enum class Config { ARGB_8888 }

    val width: Int = 0
    val height: Int = 0

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) = Unit

    companion object {
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config): Bitmap =
            throw NotImplementedError()

        fun createBitmap(
            source: Bitmap, x: Int, y: Int, width: Int, height: Int, matrix: Matrix?, filter: Boolean,
        ): Bitmap = throw NotImplementedError()
    }
}

object BitmapFactory {
    class Options {
        var inJustDecodeBounds = false
        var inSampleSize = 0
        var outWidth = 0
        var outHeight = 0
    }

    fun decodeStream(stream: InputStream?, outPadding: Rect?, options: Options?): Bitmap? = null

    fun decodeByteArray(data: ByteArray, offset: Int, length: Int): Bitmap? = null
}

class Rect

class RectF(var left: Float, var top: Float, var right: Float, var bottom: Float)

class Matrix {
    fun postScale(x: Float, y: Float): Boolean = true

    fun postRotate(degrees: Float): Boolean = true
}

class Canvas {
    fun drawBitmap(bitmap: Bitmap, source: Rect?, place: RectF, paint: Paint?) = Unit

    fun drawCircle(x: Float, y: Float, radius: Float, paint: Paint) = Unit

    fun drawRect(place: RectF, paint: Paint) = Unit
}

class Paint(flags: Int) {
    enum class Style { FILL, STROKE }

    var style = Style.FILL
    var color = 0
    var strokeWidth = 0f

    companion object {
        const val ANTI_ALIAS_FLAG = 1
        const val FILTER_BITMAP_FLAG = 2
    }
}

object Color {
    const val WHITE = -1

    fun rgb(red: Int, green: Int, blue: Int): Int = 0

    fun argb(alpha: Int, red: Int, green: Int, blue: Int): Int = 0
}
