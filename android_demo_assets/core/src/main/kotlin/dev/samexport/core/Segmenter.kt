package dev.samexport.core

import java.security.MessageDigest

/** Runs one entry point of a graph's file on tensors of exactly its shapes, by name, row-major. */
fun interface GraphRunner {
    fun run(graph: Graph, entry: EntryPoint, inputs: Map<String, FloatArray>): Map<String, FloatArray>
}

/** The answer to one prompt: its mask at the picture's size, the predicted IoU, which of the model's masks it is. */
class Answer(val mask: Mask, val score: Float, val index: Int)

/** Milliseconds of the last picture and prompts; those of the models include writing inputs and reading results. */
data class Timings(val encode: Double = 0.0, val decode: Double = 0.0, val upscale: Double = 0.0)

/** What a phone made of the manifest's [Check]: [ious] with PyTorch's masks, and whether it resizes as Pillow does. */
class CheckResult(val resizedAlike: Boolean, val ious: List<Double>) {
    val passed: Boolean get() = resizedAlike && ious.all { it >= LOWEST_IOU }

    companion object {
        /** Half precision moves a mask's rim; below this the masks are wrong. */
        const val LOWEST_IOU = 0.99
    }
}

/** From a picture and prompts to masks. Use from one thread at a time. */
class Segmenter(val manifest: Manifest, private val runner: GraphRunner) {
    var timings = Timings()
        private set
    private var picture: Picture? = null
    private var shared: Map<String, FloatArray> = emptyMap()

    /** Encode a picture; the prompts that follow are about it. */
    fun setPicture(picture: Picture) {
        this.picture = null
        val start = System.nanoTime()
        var known = run(manifest.encoder, mapOf("image" to toFrame(picture, manifest.frame)))
        manifest.prologue?.let { known = run(it, known) }
        shared = known
        timings = Timings(encode = millisecondsSince(start))
        this.picture = picture
    }

    /** The mask that SAM's rule picks for each prompt, in their order. */
    fun predict(prompts: List<Prompt>): List<Answer> {
        val picture = checkNotNull(picture) { "no picture was set" }
        val packed = pack(prompts, picture.height, picture.width, manifest.frame)
        val cells = manifest.frame.lowRes * manifest.frame.lowRes
        var decoding = 0.0
        var upscaling = 0.0
        val answers = ArrayList<Answer>()
        for (call in planCalls(packed, manifest.decoder.entryPoints)) {
            val decodeStart = System.nanoTime()
            val prompt = mapOf("point_coords" to call.tensors.coords, "point_labels" to call.tensors.labels)
            val found = runner.run(manifest.decoder, call.entry, shared + prompt)
            decoding += millisecondsSince(decodeStart)
            val upscaleStart = System.nanoTime()
            val logits = found.getValue("low_res_masks")
            val scores = found.getValue("iou_predictions")
            val masks = scores.size / call.entry.prompts
            for (n in 0 until call.count) {
                val own = scores.copyOfRange(n * masks, (n + 1) * masks)
                val number = call.start + n
                val boxed = packed.hasBox(number)
                val best = selectMask(own, packed.countTokens(number), manifest.maskOutputs, boxed)
                val offset = (n * masks + best) * cells
                val mask = upscaleMask(logits, offset, picture.height, picture.width, manifest.frame)
                answers.add(Answer(mask, own[best], best))
            }
            upscaling += millisecondsSince(upscaleStart)
        }
        timings = timings.copy(decode = decoding, upscale = upscaling)
        return answers
    }

    /** Compare with what PyTorch computed for the manifest's picture and prompts. */
    fun check(picture: Picture, expected: List<Mask>): CheckResult {
        val resized = sha256(resizeLongest(picture, manifest.frame.size).rgb)
        setPicture(picture)
        val answers = predict(manifest.check.prompts)
        return CheckResult(
            resized == manifest.check.resizedSha256,
            answers.zip(expected) { answer, mask -> answer.mask.iou(mask) },
        )
    }

    private fun run(graph: Graph, inputs: Map<String, FloatArray>) =
        runner.run(graph, graph.entryPoints.single(), inputs)

    private fun millisecondsSince(start: Long) = (System.nanoTime() - start) / 1e6
}

/** SHA-256 as lower-case hexadecimal digits. */
fun sha256(bytes: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
