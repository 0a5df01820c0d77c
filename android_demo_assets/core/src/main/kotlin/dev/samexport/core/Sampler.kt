package dev.samexport.core

/** How the candidates of MobileSAMv2's object detector become boxes; the defaults of its released code. */
class SamplerOptions(
    val confidence: Float = 0.4f,
    val nmsIou: Double = 0.9,
    val maxBoxes: Int = 300,
    val border: Float = 20f,
)

/**
 * Where a picture lies in the detector's input: the frame is the scaled picture with its bars, [left] and [top]
 * pixels into the square input.
 */
class Letterbox(
    val height: Int,
    val width: Int,
    val frameHeight: Int,
    val frameWidth: Int,
    val left: Int,
    val top: Int,
) {
    /** Pixels of the frame per pixel of the picture. */
    val scale: Double get() = minOf(frameHeight.toDouble() / height, frameWidth.toDouble() / width)
}

/** Boxes x0, y0, x1, y1 one after the other, and a score each. */
class Boxes(val corners: FloatArray, val scores: FloatArray) {
    val size: Int get() = scores.size
}

private const val STRIDE = 32
private const val GREY = 114f

/**
 * The detector's square `image` [1, 3, size, size] in 0..255, BGR as the released code feeds it unless [rgb].
 *
 * Scaled by OpenCV's bilinear rule (no antialiasing) to the last bit; bars are grey.
 */
fun letterbox(picture: Picture, size: Int, rgb: Boolean = false): Pair<FloatArray, Letterbox> {
    require(size >= STRIDE && size % STRIDE == 0) { "the image size is a multiple of $STRIDE, got $size" }
    val scale = minOf(size.toDouble() / picture.height, size.toDouble() / picture.width)
    val height = maxOf(1, Math.rint(picture.height * scale).toInt())
    val width = maxOf(1, Math.rint(picture.width * scale).toInt())
    val resized = resizeWithoutAntialias(picture, height, width)
    val frameHeight = (height + STRIDE - 1) / STRIDE * STRIDE
    val frameWidth = (width + STRIDE - 1) / STRIDE * STRIDE
    val top = (size - frameHeight) / (2 * STRIDE) * STRIDE
    val left = (size - frameWidth) / (2 * STRIDE) * STRIDE
    val y0 = top + Math.rint((frameHeight - height) / 2.0 - 0.1).toInt()
    val x0 = left + Math.rint((frameWidth - width) / 2.0 - 0.1).toInt()
    val plane = size * size
    val image = FloatArray(3 * plane) { GREY }
    for (channel in 0 until 3) {
        val from = if (rgb) channel else 2 - channel
        for (y in 0 until height) {
            for (x in 0 until width) {
                val value = resized.rgb[3 * (y * width + x) + from].toInt() and 255
                image[channel * plane + (y0 + y) * size + x0 + x] = value.toFloat()
            }
        }
    }
    return image to Letterbox(picture.height, picture.width, frameHeight, frameWidth, left, top)
}

private class FixedTaps(source: Int, target: Int) {
    val first = IntArray(target)
    val near = IntArray(target)
    val far = IntArray(target)

    init {
        val step = 1 / (target.toDouble() / source)
        for (i in 0 until target) {
            val centre = ((i + 0.5) * step - 0.5).toFloat()
            val whole = Math.floor(centre.toDouble()).toFloat()
            val weight = centre - whole
            first[i] = whole.toInt()
            near[i] = Math.rint(((1 - weight) * 2048f).toDouble()).toInt()
            far[i] = Math.rint((weight * 2048f).toDouble()).toInt()
        }
    }
}

private fun resizeWithoutAntialias(picture: Picture, height: Int, width: Int): Picture {
    if (height == picture.height && width == picture.width) return picture
    val columns = FixedTaps(picture.width, width)
    val rows = FixedTaps(picture.height, height)
    val rgb = ByteArray(3 * height * width)
    for (y in 0 until height) {
        val above = rows.first[y].coerceIn(0, picture.height - 1)
        val below = (rows.first[y] + 1).coerceIn(0, picture.height - 1)
        for (x in 0 until width) {
            for (channel in 0 until 3) {
                val high = widened(picture, columns, above, x, channel)
                val low = widened(picture, columns, below, x, channel)
                val total = (high * rows.near[y] shr 16) + (low * rows.far[y] shr 16)
                rgb[3 * (y * width + x) + channel] = (total + 2 shr 2).toByte()
            }
        }
    }
    return Picture(width, height, rgb)
}

private fun widened(picture: Picture, columns: FixedTaps, row: Int, x: Int, channel: Int): Int {
    val left = maxOf(0, columns.first[x])
    val right = minOf(picture.width - 1, columns.first[x] + 1)
    val a = picture.rgb[3 * (row * picture.width + left) + channel].toInt() and 255
    val b = picture.rgb[3 * (row * picture.width + right) + channel].toInt() and 255
    return a * columns.near[x] + b * columns.far[x] shr 4
}

/** Candidates in the detector's input to boxes of the picture, best first. */
fun postprocess(candidates: Boxes, placed: Letterbox, options: SamplerOptions = SamplerOptions()): Boxes {
    val likely = (0 until candidates.size).filter { candidates.scores[it] > options.confidence }
    val kept = nms(pick(candidates, likely), options.nmsIou, options.maxBoxes).map { likely[it] }
    val boxes = pick(candidates, kept)
    val corners = boxes.corners
    val farX = placed.frameWidth.toFloat()
    val farY = placed.frameHeight.toFloat()
    // the released code takes the bars from unrounded sides
    val barX = Math.rint((placed.frameWidth - placed.width * placed.scale) / 2 - 0.1).toFloat()
    val barY = Math.rint((placed.frameHeight - placed.height * placed.scale) / 2 - 0.1).toFloat()
    val scale = placed.scale.toFloat()
    for (i in corners.indices) {
        val alongX = i % 2 == 0
        var value = corners[i] - (if (alongX) placed.left else placed.top)
        val far = if (alongX) farX else farY
        if (i % 4 < 2 && value < options.border) value = 0f
        if (i % 4 >= 2 && value > far - options.border) value = far
        value = (value - (if (alongX) barX else barY)) / scale
        corners[i] = value.coerceIn(0f, (if (alongX) placed.width else placed.height).toFloat())
    }
    val solid = (0 until boxes.size).filter {
        corners[4 * it + 2] > corners[4 * it] && corners[4 * it + 3] > corners[4 * it + 1]
    }
    return pick(boxes, solid)
}

private fun pick(boxes: Boxes, which: List<Int>): Boxes = Boxes(
    FloatArray(4 * which.size) { boxes.corners[4 * which[it / 4] + it % 4] },
    FloatArray(which.size) { boxes.scores[which[it]] },
)

/**
 * Greedy non-maximum suppression: indices that stay, by descending score; equal scores keep their order.
 *
 * A box goes when its intersection over union with a better one that stays is above [iou].
 */
fun nms(boxes: Boxes, iou: Double, most: Int = Int.MAX_VALUE): List<Int> {
    val order = (0 until boxes.size).sortedByDescending { boxes.scores[it] }
    val alive = BooleanArray(boxes.size) { true }
    val kept = ArrayList<Int>()
    for ((rank, index) in order.withIndex()) {
        if (kept.size == most) break
        if (!alive[rank]) continue
        kept.add(index)
        for (other in rank + 1 until order.size) {
            if (alive[other] && overlap(boxes.corners, index, order[other]) > iou) alive[other] = false
        }
    }
    return kept
}

private fun overlap(corners: FloatArray, one: Int, other: Int): Float {
    val a = 4 * one
    val b = 4 * other
    val across = maxOf(minOf(corners[a + 2], corners[b + 2]) - maxOf(corners[a], corners[b]), 0f)
    val down = maxOf(minOf(corners[a + 3], corners[b + 3]) - maxOf(corners[a + 1], corners[b + 1]), 0f)
    val shared = across * down
    return shared / (area(corners, a) + area(corners, b) - shared)
}

private fun area(corners: FloatArray, at: Int): Float =
    (corners[at + 2] - corners[at]) * (corners[at + 3] - corners[at + 1])
