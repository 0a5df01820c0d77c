package android.app

import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.view.View

open class Activity : Context() {
    protected open fun onCreate(savedInstanceState: Bundle?) = Unit

    protected open fun onDestroy() = Unit

    protected open fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) = Unit

    fun setContentView(layout: Int) = Unit

    fun <T : View> findViewById(id: Int): T = throw NotImplementedError()

    fun startActivityForResult(intent: Intent, requestCode: Int) = Unit

    fun runOnUiThread(action: Runnable) = Unit

    companion object {
        const val RESULT_OK = -1
    }
}
