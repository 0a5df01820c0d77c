package android.view

import android.content.Context
import android.content.res.Resources
import android.graphics.Canvas
import android.util.AttributeSet

open class View(context: Context?, attributes: AttributeSet? = null) {
    fun interface OnClickListener {
        fun onClick(view: View?)
    }

    val width: Int = 0
    val height: Int = 0
    val resources: Resources = throw NotImplementedError()
    var isEnabled = true

    protected open fun onDraw(canvas: Canvas) = Unit

    open fun onTouchEvent(event: MotionEvent): Boolean = false

    open fun performClick(): Boolean = false

    fun invalidate() = Unit

    fun setOnClickListener(listener: OnClickListener?) = Unit
}

class MotionEvent private constructor() {
    val actionMasked: Int = 0
    val x: Float = 0f
    val y: Float = 0f

    companion object {
        const val ACTION_DOWN = 0
        const val ACTION_UP = 1
        const val ACTION_MOVE = 2
        const val ACTION_CANCEL = 3
    }
}

class ViewConfiguration private constructor() {
    val scaledTouchSlop: Int = 0

    companion object {
        fun get(context: Context): ViewConfiguration = throw NotImplementedError()
    }
}
