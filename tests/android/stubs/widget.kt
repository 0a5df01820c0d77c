package android.widget

import android.content.Context
import android.view.View

interface SpinnerAdapter

abstract class AdapterView<T>(context: Context?) : View(context) {
    interface OnItemSelectedListener {
        fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long)

        fun onNothingSelected(parent: AdapterView<*>?)
    }

    var onItemSelectedListener: OnItemSelectedListener? = null
    val selectedItem: Any? = null
    abstract var adapter: T
}

class Spinner(context: Context?) : AdapterView<SpinnerAdapter>(context) {
    override var adapter: SpinnerAdapter = throw NotImplementedError()
}

class ArrayAdapter<T>(context: Context, layout: Int, items: List<T>) : SpinnerAdapter

open class TextView(context: Context?) : View(context) {
    var text: CharSequence = ""

    fun setText(id: Int) = Unit
}

open class Button(context: Context?) : TextView(context)

class CheckBox(context: Context?) : Button(context) {
    var isChecked = false
}
