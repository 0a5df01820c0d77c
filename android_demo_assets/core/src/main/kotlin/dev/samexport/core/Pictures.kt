package dev.samexport.core

/** 8-bit RGB, rows from the top, three bytes a pixel. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray) {
    init {
        require(width > 0 && height > 0 && rgb.size == 3 * width * height) {
            "$width x $height pixels need ${3L * width * height} bytes, got ${rgb.size}"
        }
    }

    companion object {
        /** From packed pixels 0xAARRGGBB as Android's bitmaps have them; alpha is dropped, not blended. */
        fun ofArgb(width: Int, height: Int, pixels: IntArray): Picture {
            val rgb = ByteArray(3 * width * height)
            for (i in 0 until width * height) {
                rgb[3 * i] = (pixels[i] shr 16).toByte()
                rgb[3 * i + 1] = (pixels[i] shr 8).toByte()
                rgb[3 * i + 2] = pixels[i].toByte()
            }
            return Picture(width, height, rgb)
        }
    }
}

/** Height and width. */
data class Size(val height: Int, val width: Int)

/** Height and width once the long side is [size]; SAM's rounding, and at least 1. */
fun resizedSize(height: Int, width: Int, size: Int): Size {
    require(height > 0 && width > 0) { "an image has at least one pixel, got height $height, width $width" }
    val scale = size.toDouble() / maxOf(height, width)
    return Size(maxOf(1, (height * scale + 0.5).toInt()), maxOf(1, (width * scale + 0.5).toInt()))
}

/**
 * Scale so that the long side is [size], to the bit what Pillow's bilinear filter gives.
 *
 * That filter widens when it shrinks, computes in fixed point and rounds to 8 bits between its two passes, columns
 * first. `Bitmap.createScaledBitmap` gives other pixels, and other pixels give other masks.
 */
fun resizeLongest(picture: Picture, size: Int): Picture {
    val (height, width) = resizedSize(picture.height, picture.width, size)
    var result = picture
    if (width != result.width) result = resizeColumns(result, width)
    if (height != result.height) result = resizeRows(result, height)
    return result
}

/** Fixed-point weights of a triangle filter: target i reads the sources first[i] until first[i] + counts[i]. */
private class Taps(source: Int, target: Int) {
    val first = IntArray(target)
    val counts = IntArray(target)
    val stride: Int
    val weights: IntArray

    init {
        val scale = source.toDouble() / target
        val support = maxOf(1.0, scale)
        stride = Math.ceil(support).toInt() * 2 + 1
        weights = IntArray(target * stride)
        val share = DoubleArray(stride)
        for (i in 0 until target) {
            val centre = (i + 0.5) * scale
            val from = maxOf(0, (centre - support + 0.5).toInt())
            val to = minOf(source, (centre + support + 0.5).toInt())
            var total = 0.0
            for (x in from until to) {
                share[x - from] = maxOf(0.0, 1 - Math.abs((x - centre + 0.5) * (1 / support)))
                total += share[x - from]
            }
            first[i] = from
            counts[i] = to - from
            for (x in 0 until to - from) {
                val weight = if (total != 0.0) share[x] / total else share[x]
                weights[i * stride + x] = (0.5 + weight * (1 shl BITS)).toInt()
            }
        }
    }

    companion object {
        const val BITS = 22
    }
}

private fun rounded(sum: Int): Byte = (sum shr Taps.BITS).coerceIn(0, 255).toByte()

private const val HALF = 1 shl (Taps.BITS - 1)

private fun resizeColumns(picture: Picture, width: Int): Picture {
    val taps = Taps(picture.width, width)
    val source = picture.rgb
    val rgb = ByteArray(3 * width * picture.height)
    var out = 0
    for (y in 0 until picture.height) {
        val row = 3 * y * picture.width
        for (x in 0 until width) {
            var red = HALF
            var green = HALF
            var blue = HALF
            var at = row + 3 * taps.first[x]
            val begin = x * taps.stride
            for (k in begin until begin + taps.counts[x]) {
                val weight = taps.weights[k]
                red += (source[at].toInt() and 255) * weight
                green += (source[at + 1].toInt() and 255) * weight
                blue += (source[at + 2].toInt() and 255) * weight
                at += 3
            }
            rgb[out] = rounded(red)
            rgb[out + 1] = rounded(green)
            rgb[out + 2] = rounded(blue)
            out += 3
        }
    }
    return Picture(width, picture.height, rgb)
}

private fun resizeRows(picture: Picture, height: Int): Picture {
    val taps = Taps(picture.height, height)
    val row = 3 * picture.width
    val rgb = ByteArray(row * height)
    val sums = IntArray(row)
    for (y in 0 until height) {
        sums.fill(HALF)
        for (k in 0 until taps.counts[y]) {
            val weight = taps.weights[y * taps.stride + k]
            val from = (taps.first[y] + k) * row
            for (x in 0 until row) sums[x] += (picture.rgb[from + x].toInt() and 255) * weight
        }
        for (x in 0 until row) rgb[y * row + x] = rounded(sums[x])
    }
    return Picture(picture.width, height, rgb)
}

/**
 * The encoder's `image` [1, 3, size, size]: RGB in 0..255, the resized picture top left, the mean elsewhere.
 *
 * Normalisation is inside the encoder.
 */
fun toFrame(picture: Picture, frame: Frame): FloatArray {
    val resized = resizeLongest(picture, frame.size)
    val plane = frame.size * frame.size
    val image = FloatArray(3 * plane)
    for (channel in 0 until 3) {
        image.fill(frame.mean[channel], channel * plane, (channel + 1) * plane)
        for (y in 0 until resized.height) {
            val row = channel * plane + y * frame.size
            for (x in 0 until resized.width) {
                image[row + x] = (resized.rgb[3 * (y * resized.width + x) + channel].toInt() and 255).toFloat()
            }
        }
    }
    return image
}

/**
 * A picture shown as large as it fits into the middle of a view; converts between their pixels.
 */
class Fit(viewWidth: Int, viewHeight: Int, private val width: Int, private val height: Int) {
    val scale: Float = minOf(viewWidth.toFloat() / width, viewHeight.toFloat() / height)
    val left: Float = (viewWidth - width * scale) / 2
    val top: Float = (viewHeight - height * scale) / 2

    /** x in the picture, moved to its nearest edge where the finger is beside it. */
    fun pictureX(viewX: Float): Double = ((viewX - left) / scale).toDouble().coerceIn(0.0, width.toDouble())

    fun pictureY(viewY: Float): Double = ((viewY - top) / scale).toDouble().coerceIn(0.0, height.toDouble())

    fun viewX(pictureX: Double): Float = left + (pictureX * scale).toFloat()

    fun viewY(pictureY: Double): Float = top + (pictureY * scale).toFloat()
}
