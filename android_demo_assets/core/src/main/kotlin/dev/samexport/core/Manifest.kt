package dev.samexport.core

/**
 * The square that a model sees: the long side of a picture is scaled to [size], the rest is [mean], RGB in 0..255.
 */
class Frame(val size: Int, val mean: FloatArray) {
    /** Side of the low-resolution masks; one pixel is 4 pixels of the frame. */
    val lowRes: Int get() = size / 4
}

/** A tensor of a graph, float32; a size of the shape is null where it is the number of prompts or of points. */
data class Tensor(val name: String, val shape: List<Int?>)

/** One entry point (signature) of a file: exactly [prompts] prompts of [points] points. */
data class EntryPoint(val name: String, val prompts: Int, val points: Int)

/** One model file and how to call it. [file] is relative to the manifest. */
class Graph(
    val name: String,
    val file: String,
    val sha256: String,
    val inputs: List<Tensor>,
    val outputs: List<Tensor>,
    val entryPoints: List<EntryPoint>,
)

/** A picture, prompts in its pixels, and the masks that PyTorch computed: what a phone must reproduce. */
class Check(
    val picture: String,
    val resizedSha256: String,
    val prompts: List<Prompt>,
    val masks: List<String>,
)

/** What `samexport android` wrote beside the model files. */
class Manifest(
    val model: String,
    val summary: String,
    val licence: String,
    val randomWeights: Boolean,
    val frame: Frame,
    val maskOutputs: List<Int>,
    val graphs: List<Graph>,
    val check: Check,
) {
    val encoder: Graph get() = graph("encoder") ?: throw IllegalArgumentException("the manifest has no encoder")

    /** The graphs from `image_embeddings` to masks: the decoder, or its half for each picture and for each prompt. */
    val prologue: Graph? get() = graph("decoder_prologue")
    val decoder: Graph
        get() = graph("decoder") ?: graph("decoder_step")
            ?: throw IllegalArgumentException("the manifest has no decoder")

    private fun graph(name: String): Graph? = graphs.firstOrNull { it.name == name }

    companion object {
        const val FILE = "samexport.json"
        private const val SCHEMA_VERSION = 1

        /** Throws [IllegalArgumentException] where [text] is no such manifest. */
        fun parse(text: String): Manifest {
            val data = parseJson(text)
            val version = data.int("schema_version")
            require(version == SCHEMA_VERSION) { "schema version $version, this app reads $SCHEMA_VERSION" }
            val frame = data.child("frame")
            return Manifest(
                model = data.text("model"),
                summary = data.text("summary"),
                licence = data.text("licence"),
                randomWeights = data.child("weights").text("kind") == "random",
                frame = Frame(frame.int("size"), frame.numbers("mean").map { it.toFloat() }.toFloatArray()),
                maskOutputs = data.ints("mask_outputs"),
                graphs = data.children("graphs").map(::graphOf),
                check = checkOf(data.child("check")),
            )
        }

        private fun graphOf(data: JsonObject) = Graph(
            name = data.text("name"),
            file = data.text("file"),
            sha256 = data.text("sha256"),
            inputs = data.children("inputs").map(::tensorOf),
            outputs = data.children("outputs").map(::tensorOf),
            entryPoints = data.children("entry_points").map {
                EntryPoint(it.text("name"), it.int("prompts"), it.int("points"))
            },
        )

        private fun tensorOf(data: JsonObject): Tensor {
            val sizes = data.ints("shape")
            return Tensor(data.text("name"), sizes.map { size -> size.takeIf { it > 0 } })
        }

        private fun checkOf(data: JsonObject) = Check(
            picture = data.text("picture"),
            resizedSha256 = data.text("resized_sha256"),
            prompts = data.children("prompts").map { prompt ->
                Prompt(
                    points = prompt.numbers("points"),
                    labels = prompt.ints("labels").toIntArray(),
                    box = prompt.numbers("box").takeIf { it.isNotEmpty() },
                )
            },
            masks = data.texts("masks"),
        )
    }
}
