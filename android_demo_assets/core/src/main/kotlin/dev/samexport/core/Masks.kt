package dev.samexport.core

/** A mask of [width] x [height] pixels, rows from the top. */
class Mask(val width: Int, val height: Int, val inside: BooleanArray) {
    val area: Int get() = inside.count { it }

    /** Intersection over union; 1 where both are empty. */
    fun iou(other: Mask): Double {
        require(width == other.width && height == other.height) { "masks of different sizes" }
        var both = 0
        var either = 0
        for (i in inside.indices) {
            if (inside[i] && other.inside[i]) both++
            if (inside[i] || other.inside[i]) either++
        }
        return if (either == 0) 1.0 else both.toDouble() / either
    }
}

/** One axis of the way from low-resolution logits to the picture: up to four sources for each target. */
private class Axis(lowRes: Int, frameSize: Int, resized: Int, original: Int) {
    val sources = IntArray(4 * original)
    val weights = FloatArray(4 * original)

    init {
        val toFrame = Linear(lowRes, frameSize)
        // no source reaches beyond the resized picture: that is the crop
        val toPicture = Linear(resized, original)
        for (i in 0 until original) {
            for (outer in 0..1) {
                val middle = toPicture.source(i, outer)
                for (inner in 0..1) {
                    val at = 4 * i + 2 * outer + inner
                    sources[at] = toFrame.source(middle, inner)
                    weights[at] = (toPicture.weight(i, outer) * toFrame.weight(middle, inner)).toFloat()
                }
            }
        }
    }
}

/** Bilinear with half-pixel centres, torch's `align_corners=False`: two sources for each target. */
private class Linear(private val source: Int, target: Int) {
    private val centre = DoubleArray(target) { maxOf(0.0, (it + 0.5) * (source.toDouble() / target) - 0.5) }

    fun source(target: Int, tap: Int): Int {
        val first = minOf(centre[target].toInt(), source - 1)
        return if (tap == 0) first else minOf(first + 1, source - 1)
    }

    fun weight(target: Int, tap: Int): Double {
        val second = centre[target] - minOf(centre[target].toInt(), source - 1)
        return if (tap == 0) 1 - second else second
    }
}

/**
 * Scale logits [lowRes, lowRes] to the picture, row-major [height, width].
 *
 * To the frame, padding cut off, to the picture, both bilinear, in one step for each axis. [row] gets one row of
 * the result at a time; the array is used again for the next one.
 */
private inline fun upscale(
    logits: FloatArray,
    offset: Int,
    height: Int,
    width: Int,
    frame: Frame,
    row: (Int, FloatArray) -> Unit,
) {
    val side = frame.lowRes
    require(logits.size >= offset + side * side) { "logits of this model are $side x $side" }
    val resized = resizedSize(height, width, frame.size)
    val columns = Axis(side, frame.size, resized.width, width)
    val rows = Axis(side, frame.size, resized.height, height)
    val widened = FloatArray(side * width)
    for (y in 0 until side) {
        for (x in 0 until width) {
            var sum = 0f
            for (k in 4 * x until 4 * x + 4) sum += columns.weights[k] * logits[offset + y * side + columns.sources[k]]
            widened[y * width + x] = sum
        }
    }
    val values = FloatArray(width)
    for (y in 0 until height) {
        values.fill(0f)
        for (k in 4 * y until 4 * y + 4) {
            val weight = rows.weights[k]
            val from = rows.sources[k] * width
            if (weight != 0f) for (x in 0 until width) values[x] += weight * widened[from + x]
        }
        row(y, values)
    }
}

/** Logits at the picture's size [height, width]; [offset] is where the mask starts in [logits]. */
fun upscaleLogits(logits: FloatArray, offset: Int, height: Int, width: Int, frame: Frame): FloatArray {
    val result = FloatArray(height * width)
    upscale(logits, offset, height, width, frame) { y, values -> values.copyInto(result, y * width) }
    return result
}

/** Where the upscaled logits are above [threshold], without holding them. */
fun upscaleMask(
    logits: FloatArray,
    offset: Int,
    height: Int,
    width: Int,
    frame: Frame,
    threshold: Float = 0f,
): Mask {
    val inside = BooleanArray(height * width)
    upscale(logits, offset, height, width, frame) { y, values ->
        for (x in 0 until width) inside[y * width + x] = values[x] > threshold
    }
    return Mask(width, height, inside)
}
