package android.util

interface AttributeSet

class DisplayMetrics {
    var density = 1f
}
