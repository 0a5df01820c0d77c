package android.content

import android.content.res.AssetManager
import android.content.res.Resources
import android.net.Uri
import java.io.InputStream

abstract class Context {
    val assets: AssetManager = throw NotImplementedError()
    val contentResolver: ContentResolver = throw NotImplementedError()
    val resources: Resources = throw NotImplementedError()

    fun getString(id: Int): String = throw NotImplementedError()

    fun getString(id: Int, vararg values: Any?): String = throw NotImplementedError()
}

abstract class ContentResolver {
    fun openInputStream(uri: Uri): InputStream? = throw NotImplementedError()
}

class Intent(action: String) {
    val data: Uri? = null
    var type: String? = null

    fun addCategory(category: String): Intent = this

    companion object {
        const val ACTION_OPEN_DOCUMENT = "android.intent.action.OPEN_DOCUMENT"
        const val CATEGORY_OPENABLE = "android.intent.category.OPENABLE"
    }
}
