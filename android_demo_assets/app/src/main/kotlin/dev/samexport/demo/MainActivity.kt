package dev.samexport.demo

import android.app.Activity
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Color
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.CheckBox
import android.widget.Spinner
import android.widget.TextView
import com.google.ai.edge.litert.Accelerator
import dev.samexport.core.Manifest
import dev.samexport.core.Prompt
import dev.samexport.core.Segmenter
import dev.samexport.core.sha256
import java.io.IOException
import java.util.concurrent.Executors

/** Tap points or drag a box on a photo and see the mask. */
class MainActivity : Activity() {
    // the models belong to this one thread
    private val worker = Executors.newSingleThreadExecutor()
    private var segmenter: Segmenter? = null
    private var runner: LiteRtRunner? = null
    private var photo: Bitmap? = null
    private var running = 0

    private val view by lazy { findViewById<PhotoView>(R.id.photo) }
    private val status by lazy { findViewById<TextView>(R.id.status) }
    private val gpu by lazy { findViewById<CheckBox>(R.id.gpu) }
    private val outside by lazy { findViewById<CheckBox>(R.id.outside) }
    private val models by lazy { findViewById<Spinner>(R.id.models) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        val names = assets.list(MODELS).orEmpty().sorted()
        if (names.isEmpty()) {
            status.setText(R.string.no_models)
            return
        }
        models.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, names)
        models.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) = load()

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
        gpu.setOnClickListener { load() }
        findViewById<Button>(R.id.open).setOnClickListener { choosePhoto() }
        findViewById<Button>(R.id.clear).setOnClickListener { clearPrompts() }
        findViewById<Button>(R.id.check).setOnClickListener { check() }
        view.onTap = { x, y ->
            view.points += Triple(x, y, if (outside.isChecked) 0 else 1)
            predict()
        }
        view.onBox = { corners ->
            view.box = corners
            predict()
        }
    }

    override fun onDestroy() {
        worker.execute { runner?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    /** Open the chosen model, and encode the photo with it. */
    private fun load() {
        val name = models.selectedItem as String
        val accelerator = if (gpu.isChecked) Accelerator.GPU else Accelerator.CPU
        work(getString(R.string.loading, name)) {
            runner?.close()
            segmenter = null
            val folder = "$MODELS/$name"
            val manifest = Manifest.parse(bytes("$folder/${Manifest.FILE}").decodeToString())
            val opened = LiteRtRunner(assets, folder, accelerator)
            runner = opened
            opened.open(manifest.graphs)
            segmenter = Segmenter(manifest, opened)
            encode(photo ?: bitmap("$folder/${manifest.check.picture}"))
        }
    }

    private fun choosePhoto() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT)
        intent.addCategory(Intent.CATEGORY_OPENABLE)
        intent.type = "image/*"
        startActivityForResult(intent, PHOTO)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == PHOTO && resultCode == RESULT_OK && uri != null) {
            work(getString(R.string.encoding)) { encode(readPhoto(contentResolver, uri)) }
        }
    }

    /** On the worker: the encoder's result is kept for all prompts. The first run of a model includes warming up. */
    private fun encode(bitmap: Bitmap): String {
        val segmenter = opened()
        photo = bitmap
        runOnUiThread {
            view.photo = bitmap
            clearPrompts()
        }
        segmenter.setPicture(bitmap.toPicture())
        val random = if (segmenter.manifest.randomWeights) getString(R.string.random_weights) + "\n" else ""
        return random + getString(R.string.encoded, segmenter.timings.encode)
    }

    private fun predict() {
        val points = view.points
        val prompt = Prompt(
            points.flatMap { listOf(it.first, it.second) }.toDoubleArray(),
            points.map { it.third }.toIntArray(),
            view.box,
        )
        view.invalidate()
        work(getString(R.string.decoding)) {
            val segmenter = opened()
            val answer = segmenter.predict(listOf(prompt)).single()
            val mask = answer.mask.toBitmap(MASK_COLOUR)
            runOnUiThread { view.mask = mask }
            val times = segmenter.timings
            getString(R.string.decoded, times.encode, times.decode, times.upscale, answer.score, answer.index)
        }
    }

    /** Compare this phone with PyTorch before believing any mask. */
    private fun check() {
        val name = models.selectedItem as String
        work(getString(R.string.checking)) {
            val segmenter = opened()
            val folder = "$MODELS/$name"
            val damaged = segmenter.manifest.graphs.filter { sha256(bytes("$folder/${it.file}")) != it.sha256 }
            require(damaged.isEmpty()) { "${damaged.first().file} is not the file that was exported" }
            val wanted = segmenter.manifest.check
            val picture = bitmap("$folder/${wanted.picture}")
            val masks = wanted.masks.map { bitmap("$folder/$it").toMask() }
            val result = segmenter.check(picture.toPicture(), masks)
            photo = picture
            runOnUiThread {
                view.photo = picture
                clearPrompts()
            }
            val verdict = getString(if (result.passed) R.string.check_passed else R.string.check_failed)
            val alike = getString(if (result.resizedAlike) R.string.resized_alike else R.string.resized_otherwise)
            "$verdict\n$alike\n" + result.ious.joinToString { getString(R.string.iou, it) }
        }
    }

    private fun clearPrompts() {
        view.points = emptyList()
        view.box = null
        view.mask = null
    }

    private fun opened(): Segmenter = checkNotNull(segmenter) { "the model is not loaded" }

    /** Do [task] on the worker; [message] is shown until then, and what it returns, or why it failed, afterwards. */
    private fun work(message: String, task: () -> String) {
        status.text = message
        running++
        // a touch meanwhile would mean the photo that is about to go
        view.isEnabled = false
        worker.execute {
            // LiteRT, damaged pictures and too many points all end here; a demo shows the reason and goes on
            val result = runCatching(task).getOrElse { getString(R.string.failed, it.message ?: it.javaClass.name) }
            runOnUiThread {
                status.text = result
                running--
                view.isEnabled = running == 0
            }
        }
    }

    private fun bytes(asset: String): ByteArray = assets.open(asset).use { it.readBytes() }

    private fun bitmap(asset: String): Bitmap {
        val content = bytes(asset)
        return BitmapFactory.decodeByteArray(content, 0, content.size) ?: throw IOException("$asset is damaged")
    }

    private companion object {
        const val MODELS = "models"
        const val PHOTO = 1
        val MASK_COLOUR = Color.argb(140, 30, 144, 255)
    }
}
