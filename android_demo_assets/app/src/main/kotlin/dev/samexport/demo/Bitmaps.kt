package dev.samexport.demo

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import dev.samexport.core.Mask
import dev.samexport.core.Picture
import java.io.FileNotFoundException
import java.io.InputStream

/** Photos are read at most this large: the model sees 1024 pixels, and a bitmap of a whole photo needs 200 MB. */
private const val LONGEST_SIDE = 2048

/** The photo at [uri], upright, its long side scaled by a power of two to at most [LONGEST_SIDE] pixels. */
fun readPhoto(resolver: ContentResolver, uri: Uri): Bitmap {
    val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    resolver.read(uri) { BitmapFactory.decodeStream(it, null, bounds) }
    require(bounds.outWidth > 0) { "this is no picture" }
    val options = BitmapFactory.Options()
    options.inSampleSize = 1
    while (maxOf(bounds.outWidth, bounds.outHeight) / options.inSampleSize > LONGEST_SIDE) options.inSampleSize *= 2
    val bitmap = requireNotNull(resolver.read(uri) { BitmapFactory.decodeStream(it, null, options) }) {
        "this is no picture that Android can read"
    }
    val orientation = resolver.read(uri) {
        ExifInterface(it).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
    }
    return upright(bitmap, orientation)
}

private fun <T> ContentResolver.read(uri: Uri, block: (InputStream) -> T): T =
    (openInputStream(uri) ?: throw FileNotFoundException("$uri")).use(block)

private fun upright(bitmap: Bitmap, orientation: Int): Bitmap {
    val matrix = Matrix()
    when (orientation) {
        ExifInterface.ORIENTATION_FLIP_HORIZONTAL -> matrix.postScale(-1f, 1f)
        ExifInterface.ORIENTATION_ROTATE_180 -> matrix.postRotate(180f)
        ExifInterface.ORIENTATION_FLIP_VERTICAL -> matrix.postScale(1f, -1f)
        ExifInterface.ORIENTATION_TRANSPOSE -> {
            matrix.postRotate(90f)
            matrix.postScale(-1f, 1f)
        }
        ExifInterface.ORIENTATION_ROTATE_90 -> matrix.postRotate(90f)
        ExifInterface.ORIENTATION_TRANSVERSE -> {
            matrix.postRotate(270f)
            matrix.postScale(-1f, 1f)
        }
        ExifInterface.ORIENTATION_ROTATE_270 -> matrix.postRotate(270f)
        else -> return bitmap
    }
    return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, matrix, false)
}

/** The pixels as the core takes them. */
fun Bitmap.toPicture(): Picture {
    val pixels = IntArray(width * height)
    getPixels(pixels, 0, width, 0, 0, width, height)
    return Picture.ofArgb(width, height, pixels)
}

/** A black and white picture: white is inside. */
fun Bitmap.toMask(): Mask {
    val pixels = IntArray(width * height)
    getPixels(pixels, 0, width, 0, 0, width, height)
    return Mask(width, height, BooleanArray(pixels.size) { pixels[it] and 0xFF > 127 })
}

/** The mask in one colour, clear elsewhere. */
fun Mask.toBitmap(colour: Int): Bitmap {
    val pixels = IntArray(width * height) { if (inside[it]) colour else 0 }
    return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
}
