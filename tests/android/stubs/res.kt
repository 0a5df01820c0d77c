package android.content.res

import android.util.DisplayMetrics
import java.io.InputStream

class AssetManager private constructor() {
    fun open(name: String): InputStream = throw NotImplementedError()

    fun list(folder: String): Array<String>? = throw NotImplementedError()
}

class Resources private constructor() {
    val displayMetrics: DisplayMetrics = throw NotImplementedError()
}
