package dev.samexport.core

/**
 * What to segment, in pixels of the picture.
 *
 * [points] x0, y0, x1, y1, ...; [labels] 1 inside the object, 0 outside; [box] x0, y0, x1, y1 or null.
 */
class Prompt(val points: DoubleArray, val labels: IntArray, val box: DoubleArray? = null) {
    init {
        require(points.size == 2 * labels.size) { "${points.size / 2} points need as many labels, got ${labels.size}" }
        require(points.all { it.isFinite() }) { "points must be finite numbers" }
        require(labels.all { it == 0 || it == 1 }) { "labels are 1 (inside) or 0 (outside)" }
        require(labels.isNotEmpty() || box != null) { "a prompt needs a point or a box" }
        if (box != null) {
            require(box.size == 4 && box.all { it.isFinite() }) { "a box is x0, y0, x1, y1" }
            require(box[2] > box[0] && box[3] > box[1]) { "the box is empty" }
        }
    }
}

/** Labels of slots; a click is 1 (inside) or 0 (outside). */
object Label {
    const val BOX_TOP_LEFT = 2
    const val BOX_BOTTOM_RIGHT = 3

    /** SAM's own padding point: a token that changes the masks; ends a prompt that has points and no box. */
    const val PADDING = -1

    /** A slot without a point: exactly neutral. */
    const val ABSENT = -2
}

/** The decoder's `point_coords` [prompts, points, 2] and `point_labels` [prompts, points], row-major. */
class PromptTensors(val prompts: Int, val points: Int, val coords: FloatArray, val labels: FloatArray) {
    /** Slots of a prompt that are not absent. */
    fun countTokens(prompt: Int): Int =
        (prompt * points until (prompt + 1) * points).count { labels[it].toInt() != Label.ABSENT }

    /** Whether a prompt has a box. */
    fun hasBox(prompt: Int): Boolean =
        (prompt * points until (prompt + 1) * points).any { labels[it].toInt() == Label.BOX_TOP_LEFT }

    /** [count] prompts from [start] on, filled up with absent slots to the size of an entry point. */
    fun cut(start: Int, count: Int, entry: EntryPoint): PromptTensors {
        val kept = minOf(points, entry.points)
        val coords = FloatArray(2 * entry.prompts * entry.points)
        val labels = FloatArray(entry.prompts * entry.points) { Label.ABSENT.toFloat() }
        for (n in 0 until count) {
            val from = (start + n) * points
            this.coords.copyInto(coords, 2 * n * entry.points, 2 * from, 2 * (from + kept))
            this.labels.copyInto(labels, n * entry.points, from, from + kept)
        }
        return PromptTensors(entry.prompts, entry.points, coords, labels)
    }

    /** One more than the last slot that any prompt from [start] on uses. */
    fun usedSlots(start: Int): Int =
        (points downTo 1).firstOrNull { slot ->
            (start until prompts).any { labels[it * points + slot - 1].toInt() != Label.ABSENT }
        } ?: 0
}

/**
 * Turn prompts into tensors, in the frame. Coordinates are scaled in double precision, then rounded to float.
 *
 * Throws [IllegalArgumentException] where there is no prompt, or a coordinate is outside the picture, whose edges
 * count as inside.
 */
fun pack(prompts: List<Prompt>, imageHeight: Int, imageWidth: Int, frame: Frame): PromptTensors {
    require(prompts.isNotEmpty()) { "there is no prompt; give a point or a box" }
    val resized = resizedSize(imageHeight, imageWidth, frame.size)
    val scaleX = resized.width.toDouble() / imageWidth
    val scaleY = resized.height.toDouble() / imageHeight
    val slots = prompts.map { slotsOf(it, imageHeight, imageWidth) }
    val most = maxOf(1, slots.maxOf { it.second.size })
    val coords = FloatArray(2 * prompts.size * most)
    val labels = FloatArray(prompts.size * most) { Label.ABSENT.toFloat() }
    for ((n, slot) in slots.withIndex()) {
        val (points, codes) = slot
        for (k in codes.indices) {
            val at = n * most + k
            coords[2 * at] = (points[2 * k] * scaleX).toFloat()
            coords[2 * at + 1] = (points[2 * k + 1] * scaleY).toFloat()
            labels[at] = codes[k].toFloat()
        }
    }
    return PromptTensors(prompts.size, most, coords, labels)
}

private fun slotsOf(prompt: Prompt, height: Int, width: Int): Pair<DoubleArray, IntArray> {
    val box = prompt.box
    val given = prompt.points + (box ?: DoubleArray(0))
    for (k in given.indices step 2) {
        require(given[k] in 0.0..width.toDouble() && given[k + 1] in 0.0..height.toDouble()) {
            "(${given[k]}, ${given[k + 1]}) is outside the image, $width wide and $height high"
        }
    }
    if (box != null) return given to prompt.labels + intArrayOf(Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT)
    return given + doubleArrayOf(0.0, 0.0) to prompt.labels + Label.PADDING
}

/**
 * Which of a prompt's masks to show: SAM's rule.
 *
 * A box or a prompt of three tokens or more is clear, mask 0; a click the best score of the others that were trained.
 */
fun selectMask(scores: FloatArray, tokens: Int, maskOutputs: List<Int>, boxed: Boolean = false): Int {
    if ((boxed || tokens >= 3) && 0 in maskOutputs) return 0
    return maskOutputs.filter { it != 0 }.maxByOrNull { scores[it] } ?: 0
}

/** The smallest entry point with room for [points] points that holds all [prompts], else the largest one. */
fun chooseEntry(entries: List<EntryPoint>, prompts: Int, points: Int): EntryPoint {
    val roomy = entries.filter { it.points >= points }
    require(roomy.isNotEmpty()) {
        "this model takes at most ${entries.maxOf { it.points }} points a prompt, got $points"
    }
    return roomy.filter { it.prompts >= prompts }.minWithOrNull(compareBy({ it.prompts }, { it.points }))
        ?: roomy.maxWith(compareBy({ it.prompts }, { -it.points }))
}

/** One call of an entry point: prompts [start] until [start] + [count], filled up in [tensors]. */
class Call(val entry: EntryPoint, val start: Int, val count: Int, val tensors: PromptTensors)

/** How to decode any number of prompts on entry points of fixed size; the surplus prompts of a call are dropped. */
fun planCalls(packed: PromptTensors, entries: List<EntryPoint>): List<Call> {
    val calls = ArrayList<Call>()
    var start = 0
    while (start < packed.prompts) {
        val entry = chooseEntry(entries, packed.prompts - start, packed.usedSlots(start))
        val count = minOf(entry.prompts, packed.prompts - start)
        calls.add(Call(entry, start, count, packed.cut(start, count, entry)))
        start += count
    }
    return calls
}
