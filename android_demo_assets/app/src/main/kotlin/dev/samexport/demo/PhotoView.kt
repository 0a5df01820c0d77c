package dev.samexport.demo

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.RectF
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View
import android.view.ViewConfiguration
import dev.samexport.core.Fit

/** Shows a photo, a mask and the prompts, and turns touches into points and boxes of the photo. */
class PhotoView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** A tap: x, y in pixels of the photo. */
    var onTap: (Double, Double) -> Unit = { _, _ -> }

    /** A drag: x0, y0, x1, y1 in pixels of the photo, corners in order. */
    var onBox: (DoubleArray) -> Unit = {}

    var photo: Bitmap? = null
        set(value) {
            field = value
            mask = null
        }
    var mask: Bitmap? = null
        set(value) {
            field = value
            invalidate()
        }
    var points: List<Triple<Double, Double, Int>> = emptyList()
    var box: DoubleArray? = null

    private val slop = ViewConfiguration.get(context).scaledTouchSlop
    private val unit = resources.displayMetrics.density
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG or Paint.FILTER_BITMAP_FLAG)
    private var down: Pair<Float, Float>? = null
    private var dragged: RectF? = null

    private fun fit(): Fit? = photo?.let { Fit(width, height, it.width, it.height) }

    override fun onDraw(canvas: Canvas) {
        val photo = photo ?: return
        val fit = fit() ?: return
        val place = RectF(
            fit.viewX(0.0), fit.viewY(0.0), fit.viewX(photo.width.toDouble()), fit.viewY(photo.height.toDouble()),
        )
        paint.style = Paint.Style.FILL
        canvas.drawBitmap(photo, null, place, paint)
        mask?.let { canvas.drawBitmap(it, null, place, paint) }
        for ((x, y, label) in points) {
            paint.color = Color.WHITE
            canvas.drawCircle(fit.viewX(x), fit.viewY(y), 8 * unit, paint)
            paint.color = if (label == 1) INSIDE else OUTSIDE
            canvas.drawCircle(fit.viewX(x), fit.viewY(y), 6 * unit, paint)
        }
        val shown = dragged ?: box?.let {
            RectF(fit.viewX(it[0]), fit.viewY(it[1]), fit.viewX(it[2]), fit.viewY(it[3]))
        }
        if (shown != null) {
            paint.style = Paint.Style.STROKE
            paint.strokeWidth = 2 * unit
            paint.color = Color.WHITE
            canvas.drawRect(shown, paint)
        }
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        val fit = fit()
        if (fit == null || !isEnabled) {
            forget()
            return false
        }
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> down = event.x to event.y
            MotionEvent.ACTION_MOVE -> drag(event.x, event.y)
            MotionEvent.ACTION_UP -> release(fit)
            MotionEvent.ACTION_CANCEL -> forget()
        }
        return true
    }

    private fun drag(x: Float, y: Float) {
        val (x0, y0) = down ?: return
        if (dragged == null && maxOf(Math.abs(x - x0), Math.abs(y - y0)) <= slop) return
        dragged = RectF(minOf(x0, x), minOf(y0, y), maxOf(x0, x), maxOf(y0, y))
        invalidate()
    }

    private fun release(fit: Fit) {
        val start = down
        val area = dragged
        forget()
        if (area != null) {
            val corners = doubleArrayOf(
                fit.pictureX(area.left), fit.pictureY(area.top), fit.pictureX(area.right), fit.pictureY(area.bottom),
            )
            // beside the photo nothing is left of it
            if (corners[2] > corners[0] && corners[3] > corners[1]) onBox(corners)
        } else if (start != null) {
            performClick()
            onTap(fit.pictureX(start.first), fit.pictureY(start.second))
        }
    }

    private fun forget() {
        down = null
        dragged = null
        invalidate()
    }

    override fun performClick(): Boolean = super.performClick()

    private companion object {
        val INSIDE = Color.rgb(0, 150, 60)
        val OUTSIDE = Color.rgb(214, 30, 40)
    }
}
