import dev.samexport.core.GraphRunner
import dev.samexport.core.Manifest
import dev.samexport.core.Mask
import dev.samexport.core.Picture
import dev.samexport.core.Segmenter
import java.awt.image.BufferedImage
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import javax.imageio.ImageIO

/**
 * Does what the app's Check button does, with a model folder as `samexport android` writes it. The networks run at
 * the other end of stdin and stdout: file, entry point and tensors go there, tensors come back.
 */
fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val there = DataOutputStream(System.out.buffered())
    val back = DataInputStream(System.`in`.buffered())
    val manifest = Manifest.parse(File(folder, Manifest.FILE).readText())
    val runner = GraphRunner { graph, entry, inputs ->
        there.writeUTF(graph.file)
        there.writeUTF(entry.name)
        there.writeInt(inputs.size)
        for ((name, values) in inputs) {
            there.writeUTF(name)
            there.writeInt(values.size)
            for (value in values) there.writeFloat(value)
        }
        there.flush()
        graph.outputs.associate { it.name to FloatArray(back.readInt()) { back.readFloat() } }
    }
    val picture = read(File(folder, manifest.check.picture))
    val masks = manifest.check.masks.map { name ->
        val mask = read(File(folder, name))
        Mask(mask.width, mask.height, BooleanArray(mask.rgb.size / 3) { mask.rgb[3 * it].toInt() != 0 })
    }
    val result = Segmenter(manifest, runner).check(picture, masks)
    there.writeUTF("")
    there.writeUTF("passed ${result.passed}, resized alike ${result.resizedAlike}, IoU ${result.ious}")
    there.flush()
}

private fun read(file: File): Picture {
    val image: BufferedImage = ImageIO.read(file)
    val (width, height) = image.width to image.height
    return Picture.ofArgb(width, height, image.getRGB(0, 0, width, height, null, 0, width))
}
