package dev.samexport.demo

import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import dev.samexport.core.EntryPoint
import dev.samexport.core.Graph
import dev.samexport.core.GraphRunner

/**
 * Runs the files of one model with LiteRT. Use from one thread.
 *
 * The choice of [encoder] is strict: where the GPU cannot take the whole encoder, LiteRT throws instead of running
 * on the CPU unnoticed. Everything else runs on the CPU, in float32.
 */
class LiteRtRunner(
    private val assets: AssetManager,
    private val folder: String,
    private val encoder: Accelerator,
) : GraphRunner, AutoCloseable {
    private val opened = HashMap<String, OpenedGraph>()

    /** Load and compile the files; a graph must be opened before it runs. */
    fun open(graphs: List<Graph>) {
        for (graph in graphs) {
            val accelerator = if (graph.name == "encoder") encoder else Accelerator.CPU
            val model = CompiledModel.create(assets, "$folder/${graph.file}", CompiledModel.Options(accelerator))
            opened[graph.name] = OpenedGraph(graph, model)
        }
    }

    override fun run(graph: Graph, entry: EntryPoint, inputs: Map<String, FloatArray>): Map<String, FloatArray> =
        opened.getValue(graph.name).run(entry, inputs)

    override fun close() {
        opened.values.forEach { it.close() }
        opened.clear()
    }
}

private class OpenedGraph(private val graph: Graph, private val model: CompiledModel) : AutoCloseable {
    private class Buffers(val inputs: Map<String, TensorBuffer>, val outputs: Map<String, TensorBuffer>)

    private val buffers = HashMap<String, Buffers>()

    fun run(entry: EntryPoint, inputs: Map<String, FloatArray>): Map<String, FloatArray> {
        val own = buffers.getOrPut(entry.name) { create(entry.name) }
        for ((name, buffer) in own.inputs) buffer.writeFloat(inputs.getValue(name))
        model.run(own.inputs, own.outputs, entry.name)
        return own.outputs.mapValues { it.value.readFloat() }
    }

    private fun create(entry: String) = Buffers(
        graph.inputs.associate { it.name to model.createInputBuffer(it.name, entry) },
        graph.outputs.associate { it.name to model.createOutputBuffer(it.name, entry) },
    )

    override fun close() {
        for (own in buffers.values) (own.inputs.values + own.outputs.values).forEach { it.close() }
        model.close()
    }
}
