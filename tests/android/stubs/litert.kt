package com.google.ai.edge.litert

import android.content.res.AssetManager

enum class Accelerator { NONE, CPU, GPU, NPU }

class LiteRtException(message: String) : Exception(message)

abstract class JniHandle internal constructor() : AutoCloseable {
    final override fun close() = Unit
}

class Environment private constructor() : JniHandle()

class TensorBuffer internal constructor() : JniHandle() {
    fun writeFloat(data: FloatArray) = Unit

    fun readFloat(): FloatArray = throw NotImplementedError()
}

class CompiledModel private constructor() : JniHandle() {
    class Options(vararg accelerators: Accelerator)

    fun createInputBuffer(inputName: String, signature: String? = null): TensorBuffer = throw NotImplementedError()

    fun createOutputBuffer(outputName: String, signature: String? = null): TensorBuffer = throw NotImplementedError()

    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>, signature: String) = Unit

    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String? = null) = Unit

    companion object {
        fun create(
            assetManager: AssetManager, assetName: String, options: Options, optionalEnv: Environment? = null,
        ): CompiledModel = throw NotImplementedError()
    }
}
