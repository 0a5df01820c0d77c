package dev.samexport.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Cases worked out by hand, and input that must be refused. */
class CoreTest {
    private val frame = Frame(64, floatArrayOf(0f, 0f, 0f))

    private fun refused(block: () -> Unit) {
        assertThrows(IllegalArgumentException::class.java, block)
    }

    @Test
    fun readsJson() {
        val read = parseJson(" {\"a\": [1, -2.5e2, true], \"b\": {\"c\": null, \"d\": \"\\u00e9\\n\"}, \"e\": []} ")
        assertEquals(setOf("a", "b", "e"), read.keys)
        assertEquals("é\n", read.child("b").text("d"))
        assertEquals(null, read.child("b").optional("c"))
        assertArrayEquals(doubleArrayOf(), read.numbers("e"), 0.0)
        refused { read.numbers("a") }
        assertArrayEquals(doubleArrayOf(1.0, -250.0), parseJson("{\"a\":[1,-2.5e2]}").numbers("a"), 0.0)
    }

    @Test
    fun refusesWhatIsNotJson() {
        val wrong = listOf(
            "", "[]", "{", "{\"a\":1,}", "{\"a\":01}", "{\"a\":1}x", "{\"a\" 1}", "{a:1}", "{\"a\":tru}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}", "{\"a\":1,\"a\":2}", "{\"a\":NaN}", "{\"a\":" + "[".repeat(5000),
        )
        for (text in wrong) refused { parseJson(text) }
    }

    @Test
    fun refusesManifestsOfAnotherVersionOrWithoutParts() {
        refused { Manifest.parse("{\"schema_version\": 2}") }
        refused { Manifest.parse("{\"schema_version\": 1}") }
        refused { Manifest.parse("no manifest") }
    }

    @Test
    fun refusesPromptsThatMeanNothing() {
        refused { Prompt(doubleArrayOf(), intArrayOf()) }
        refused { Prompt(doubleArrayOf(1.0, 2.0), intArrayOf(2)) }
        refused { Prompt(doubleArrayOf(1.0), intArrayOf(1)) }
        refused { Prompt(doubleArrayOf(Double.NaN, 2.0), intArrayOf(1)) }
        refused { Prompt(doubleArrayOf(), intArrayOf(), doubleArrayOf(5.0, 5.0, 5.0, 9.0)) }
        refused { pack(emptyList(), 10, 10, frame) }
        refused { pack(listOf(Prompt(doubleArrayOf(10.5, 2.0), intArrayOf(1))), 10, 10, frame) }
        pack(listOf(Prompt(doubleArrayOf(10.0, 10.0), intArrayOf(1))), 10, 10, frame)
    }

    @Test
    fun refusesMorePointsThanAnyEntryPointTakes() {
        val entries = listOf(EntryPoint("decode_1", 1, 3), EntryPoint("decode_4", 4, 2))
        refused { chooseEntry(entries, 1, 4) }
        assertEquals("decode_1", chooseEntry(entries, 9, 3).name)
    }

    @Test
    fun refusesPicturesWithoutPixels() {
        refused { Picture(0, 1, ByteArray(0)) }
        refused { Picture(2, 1, ByteArray(5)) }
        refused { resizedSize(0, 5, 64) }
        refused { upscaleMask(FloatArray(255), 0, 9, 9, frame) }
        refused { letterbox(Picture(1, 1, ByteArray(3)), 100) }
    }

    @Test
    fun takesAndroidsPixels() {
        val picture = Picture.ofArgb(2, 1, intArrayOf(0x80FF0102.toInt(), 0x00030405))
        assertArrayEquals(byteArrayOf(-1, 1, 2, 3, 4, 5), picture.rgb)
    }

    @Test
    fun aTallViewShowsAWidePictureInItsMiddle() {
        val fit = Fit(100, 300, 200, 100)
        assertEquals(0.5f, fit.scale, 0f)
        assertEquals(0f, fit.left, 0f)
        assertEquals(125f, fit.top, 0f)
        assertEquals(100.0, fit.pictureX(50f), 0.0)
        assertEquals(50.0, fit.pictureY(150f), 0.0)
        assertEquals(0.0, fit.pictureY(3f), 0.0)
        assertEquals(100.0, fit.pictureY(299f), 0.0)
        assertEquals(50f, fit.viewX(100.0), 0f)
        assertEquals(150f, fit.viewY(50.0), 0f)
    }

    @Test
    fun suppressesBoxesThatOverlapABetterOne() {
        // IoU of the first two is 90 / 110; equal scores keep their order
        val boxes = Boxes(
            floatArrayOf(0f, 0f, 10f, 10f, 1f, 0f, 11f, 10f, 20f, 20f, 30f, 30f), floatArrayOf(0.5f, 0.5f, 0.9f),
        )
        assertEquals(listOf(2, 0), nms(boxes, 0.8))
        assertEquals(listOf(2, 0, 1), nms(boxes, 0.82))
        assertEquals(listOf(2), nms(boxes, 0.8, 1))
        assertEquals(emptyList<Int>(), nms(Boxes(FloatArray(0), FloatArray(0)), 0.5))
    }

    @Test
    fun masksKnowTheirAreaAndOverlap() {
        val one = Mask(2, 2, booleanArrayOf(true, true, false, false))
        val other = Mask(2, 2, booleanArrayOf(true, false, true, false))
        assertEquals(2, one.area)
        assertEquals(1.0 / 3, one.iou(other), 0.0)
        assertEquals(1.0, Mask(1, 1, booleanArrayOf(false)).iou(Mask(1, 1, booleanArrayOf(false))), 0.0)
        refused { one.iou(Mask(4, 1, one.inside)) }
    }

    @Test
    fun halvesOfADecoderRunOncePerPictureAndOncePerPrompt() {
        val ran = ArrayList<String>()
        fun graph(name: String, inputs: List<String>, outputs: List<String>) = Graph(
            name, name, "", inputs.map { Tensor(it, listOf(1)) }, outputs.map { Tensor(it, listOf(1)) },
            listOf(EntryPoint(name, 1, 8)),
        )
        val graphs = listOf(
            graph("encoder", listOf("image"), listOf("image_embeddings")),
            graph("decoder_prologue", listOf("image_embeddings"), listOf("image_tokens")),
            graph("decoder_step", listOf("image_tokens", "point_coords", "point_labels"), listOf("low_res_masks")),
        )
        val none = Check("", "", emptyList(), emptyList())
        val manifest = Manifest("m", "", "", true, frame, listOf(0, 1, 2, 3), graphs, none)
        val segmenter = Segmenter(manifest) { graph, _, inputs ->
            ran.add(graph.name)
            assertEquals(graph.inputs.map { it.name }.toSet(), inputs.keys)
            if (graph.name != "decoder_step") {
                graph.outputs.associate { it.name to FloatArray(1) }
            } else {
                mapOf("low_res_masks" to FloatArray(4 * 256) { 1f }, "iou_predictions" to FloatArray(4))
            }
        }
        segmenter.setPicture(Picture(8, 8, ByteArray(192)))
        repeat(2) { segmenter.predict(listOf(Prompt(doubleArrayOf(1.0, 1.0), intArrayOf(1)))) }
        assertEquals(listOf("encoder", "decoder_prologue", "decoder_step", "decoder_step"), ran)
        assertTrue(segmenter.timings.encode > 0)
    }

    @Test
    fun predictingWithoutAPictureIsRefused() {
        val none = Check("", "", emptyList(), emptyList())
        val manifest = Manifest("m", "", "", true, frame, listOf(0), emptyList(), none)
        val prompt = Prompt(doubleArrayOf(1.0, 1.0), intArrayOf(1))
        assertThrows(IllegalStateException::class.java) {
            Segmenter(manifest) { _, _, _ -> emptyMap() }.predict(listOf(prompt))
        }
    }
}
