package dev.samexport.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

/** The core against what samexport's Python code computed: `golden.json`, written by `tests/android/vectors.py`. */
class GoldenTest {
    private val golden = parseJson(
        checkNotNull(javaClass.getResourceAsStream("/golden.json")).use { it.readBytes().decodeToString() },
    )
    private val frame = Frame(64, floatArrayOf(123.675f, 116.28f, 103.53f))

    private fun picture(height: Int, width: Int): Picture {
        val rgb = ByteArray(3 * height * width)
        for (i in rgb.indices) {
            val y = i / 3 / width
            val x = i / 3 % width
            rgb[i] = (x * 37 + y * 91 + i % 3 * 53 + x * y % 17 * 11).toByte()
        }
        return Picture(width, height, rgb)
    }

    private fun logits(seed: Int) = FloatArray(16 * 16) {
        val y = it / 16
        val x = it % 16
        ((x * 7 + y * 13 + x * y + seed * 5) % 29 - 14) / 4f + 0.1371f
    }

    private fun floatBytes(values: FloatArray): ByteArray {
        val buffer = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
        buffer.asFloatBuffer().put(values)
        return buffer.array()
    }

    private fun packed(mask: Mask): ByteArray {
        val bytes = ByteArray((mask.inside.size + 7) / 8)
        for (i in mask.inside.indices) {
            if (mask.inside[i]) bytes[i / 8] = (bytes[i / 8].toInt() or (128 shr i % 8)).toByte()
        }
        return bytes
    }

    private fun floats(data: JsonObject, key: String) =
        data.numbers(key).map { it.toFloat() }.toFloatArray()

    private fun prompts(data: JsonObject) = data.children("prompts").map { prompt ->
        Prompt(
            prompt.numbers("points"),
            prompt.ints("labels").toIntArray(),
            prompt.numbers("box").takeIf { it.isNotEmpty() },
        )
    }

    private fun entries(data: JsonObject) =
        data.children("entries").map { EntryPoint(it.text("name"), it.int("prompts"), it.int("points")) }

    @Test
    fun resizesToTheSamePixelsAsPillow() {
        for (case in golden.children("resize")) {
            val source = picture(case.int("height"), case.int("width"))
            val resized = resizeLongest(source, case.int("size"))
            val name = "${source.height} x ${source.width} to ${case.int("size")}"
            assertEquals(name, case.ints("resized"), listOf(resized.height, resized.width))
            if ("bytes" in case.keys) {
                assertArrayEquals(name, Base64.getDecoder().decode(case.text("bytes")), resized.rgb)
            }
            assertEquals(name, case.text("sha256"), sha256(resized.rgb))
        }
    }

    @Test
    fun framesWithTheMean() {
        for (case in golden.children("frame")) {
            val framed = toFrame(picture(case.int("height"), case.int("width")), frame)
            assertEquals(case.text("sha256"), sha256(floatBytes(framed)))
        }
    }

    @Test
    fun packsPrompts() {
        for (case in golden.children("pack")) {
            val packed = pack(prompts(case), 27, 40, Frame(case.int("size"), frame.mean))
            assertArrayEquals(floats(case, "point_coords"), packed.coords, 0f)
            assertArrayEquals(floats(case, "point_labels"), packed.labels, 0f)
            assertEquals(case.ints("tokens"), (0 until packed.prompts).map { packed.countTokens(it) })
        }
    }

    @Test
    fun selectsMasks() {
        for (case in golden.children("select")) {
            val found = selectMask(floats(case, "scores"), case.int("tokens"), case.ints("mask_outputs"))
            assertEquals(case.int("mask"), found)
        }
    }

    @Test
    fun choosesEntryPoints() {
        for (case in golden.children("choose")) {
            val chosen = chooseEntry(entries(golden), case.int("prompts"), case.int("points"))
            assertEquals(case.text("entry"), chosen.name)
        }
    }

    @Test
    fun upscalesMasks() {
        for (case in golden.children("masks")) {
            val height = case.int("height")
            val width = case.int("width")
            val low = logits(case.int("seed"))
            val upscaled = upscaleLogits(low, 0, height, width, frame)
            val sample = FloatArray((upscaled.size + 96) / 97) { upscaled[97 * it] }
            assertArrayEquals("$height x $width", floats(case, "sample"), sample, 2e-6f)
            val mask = upscaleMask(low, 0, height, width, frame)
            assertArrayEquals("$height x $width", Base64.getDecoder().decode(case.text("mask")), packed(mask))
        }
    }

    @Test
    fun upscalesTheMaskThatTheOffsetNames() {
        val two = logits(3) + logits(1)
        assertArrayEquals(upscaleLogits(logits(1), 0, 27, 40, frame), upscaleLogits(two, 256, 27, 40, frame), 0f)
    }

    @Test
    fun placesPicturesForTheSampler() {
        for (case in golden.children("letterbox")) {
            val source = picture(case.int("height"), case.int("width"))
            val (image, placed) = letterbox(source, 96, case.flag("rgb"))
            val place = listOf(placed.frameHeight, placed.frameWidth, placed.left, placed.top)
            assertEquals(case.ints("place"), place)
            assertEquals(case.text("sha256"), sha256(floatBytes(image)))
        }
    }

    @Test
    fun findsTheSamplersBoxes() {
        val candidates = golden.child("candidates").let { Boxes(floats(it, "boxes"), floats(it, "scores")) }
        val found = postprocess(candidates, letterbox(picture(27, 40), 96).second)
        val expected = golden.child("found")
        assertArrayEquals(floats(expected, "scores"), found.scores, 0f)
        assertArrayEquals(floats(expected, "boxes"), found.corners, 0f)
    }

    /** The same arithmetic in the place of a network as in `vectors.py`: it depends on everything but absent slots. */
    private class Sums(private val calls: MutableList<Triple<String, FloatArray, FloatArray>>) : GraphRunner {
        override fun run(graph: Graph, entry: EntryPoint, inputs: Map<String, FloatArray>): Map<String, FloatArray> {
            assertEquals(graph.inputs.map { it.name }.toSet(), inputs.keys)
            if (graph.name == "encoder") {
                val pixels = inputs.getValue("image")
                val seen = FloatArray(64 * 4 * 4) { Math.floor(pixels[12 * it].toDouble()).toFloat() }
                return mapOf("image_embeddings" to seen)
            }
            val coords = inputs.getValue("point_coords")
            val labels = inputs.getValue("point_labels")
            val image = inputs.getValue("image_embeddings")
            assertEquals(entry.prompts * entry.points, labels.size)
            calls.add(Triple(entry.name, coords.copyOf(), labels.copyOf()))
            val logits = FloatArray(entry.prompts * 4 * 256)
            val scores = FloatArray(entry.prompts * 4)
            for (n in 0 until entry.prompts) {
                var total = image[5].toInt() + image[700].toInt()
                for (at in n * entry.points until (n + 1) * entry.points) {
                    if (labels[at] == -2f) continue
                    total += Math.floor(coords[2 * at] * 4.0).toInt() * 3 + 1000
                    total += Math.floor(coords[2 * at + 1] * 4.0).toInt() * 5 + labels[at].toInt() * 17
                }
                for (m in 0 until 4) {
                    scores[4 * n + m] = Math.floorMod(total + m * 37, 101) / 101f
                    for (i in 0 until 256) {
                        val value = Math.floorMod(i % 16 * 7 + i / 16 * 13 + m * 31 + total, 29) - 14
                        logits[(4 * n + m) * 256 + i] = value / 4f + 0.1371f
                    }
                }
            }
            return mapOf("low_res_masks" to logits, "iou_predictions" to scores)
        }
    }

    private val way = golden.child("whole_way")

    private fun manifest() = Manifest.parse(way.text("manifest"))

    @Test
    fun goesTheWholeWayFromPictureToMasks() {
        val calls = ArrayList<Triple<String, FloatArray, FloatArray>>()
        val segmenter = Segmenter(manifest(), Sums(calls))
        segmenter.setPicture(picture(27, 40))
        val answers = segmenter.predict(prompts(way))
        val expectedCalls = way.children("calls")
        assertEquals(expectedCalls.map { it.text("entry") }, calls.map { it.first })
        for ((expected, call) in expectedCalls.zip(calls)) {
            assertArrayEquals(floats(expected, "point_coords"), call.second, 0f)
            assertArrayEquals(floats(expected, "point_labels"), call.third, 0f)
        }
        val expected = way.children("answers")
        assertEquals(expected.size, answers.size)
        for ((wanted, answer) in expected.zip(answers)) {
            assertEquals(wanted.int("index"), answer.index)
            assertEquals(wanted.number("score"), answer.score.toDouble(), 0.0)
            assertEquals(wanted.int("area"), answer.mask.area)
            assertEquals(wanted.text("sha256"), sha256(packed(answer.mask)))
        }
    }

    @Test
    fun readsTheManifestThatPythonWrites() {
        val manifest = manifest()
        assertEquals("Sums, \"not\" a network \\ é", manifest.summary)
        assertEquals(listOf("test.sums", "Apache-2.0"), listOf(manifest.model, manifest.licence))
        assertTrue(manifest.randomWeights)
        assertEquals(64, manifest.frame.size)
        assertArrayEquals(frame.mean, manifest.frame.mean, 0f)
        assertEquals(listOf(0, 1, 2, 3), manifest.maskOutputs)
        assertEquals("encoder.tflite", manifest.encoder.file)
        assertEquals(listOf(null, null, 2), manifest.decoder.inputs.single { it.name == "point_coords" }.shape)
        assertEquals(entries(golden), manifest.decoder.entryPoints)
        assertEquals(listOf("check/mask0.png", "check/mask1.png"), manifest.check.masks)
        assertArrayEquals(doubleArrayOf(10.0, 6.0, 30.0, 20.0), manifest.check.prompts[1].box, 0.0)
    }

    @Test
    fun checksAPhoneAgainstTheMasksOfTheManifest() {
        val segmenter = Segmenter(manifest(), Sums(ArrayList()))
        segmenter.setPicture(picture(27, 40))
        val right = segmenter.predict(manifest().check.prompts).map { it.mask }
        val good = segmenter.check(picture(27, 40), right)
        assertTrue(good.passed)
        assertEquals(listOf(1.0, 1.0), good.ious)
        val turned = right.map { mask -> Mask(mask.width, mask.height, mask.inside.reversedArray()) }
        assertFalse(segmenter.check(picture(27, 40), turned).passed)
        val other = picture(27, 40)
        other.rgb[0] = (other.rgb[0] + 9).toByte()
        assertFalse(segmenter.check(other, right).resizedAlike)
    }
}
