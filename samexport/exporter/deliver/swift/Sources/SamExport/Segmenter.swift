#if canImport(CoreML)
import CoreGraphics
@preconcurrency import CoreML
import CoreVideo
import Foundation

/// The packages of this bundle: load, set a picture, predict, upscale.
///
///     let segmenter = Segmenter(folder: Bundle.main.resourceURL!)
///     try await segmenter.setImage(cgImage)
///     let click = Prompt(points: [CGPoint(x: 420, y: 300)], inside: [true])
///     let masks = try await segmenter.predict([click])[0]
///
/// `folder` holds the compiled packages (`.mlmodelc`, what Xcode puts into the app) or the `.mlpackage`s of the
/// bundle, which are then compiled at the first use.
public actor Segmenter {
    private let folder: URL
    private let computeUnits: MLComputeUnits
    private var models: [String: MLModel] = [:]
    private var known: [String: MLFeatureValue] = [:]
    private var size = (width: 0, height: 0)

    public init(folder: URL, computeUnits: MLComputeUnits = .all) {
        self.folder = folder
        self.computeUnits = computeUnits
    }

    /// Load every entry point now; otherwise each is loaded when it is first used.
    public func load() async throws {
        for graph in Contract.all {
            for entry in graph.entryPoints {
                _ = try await model(entry)
            }
        }
    }

    /// Encode an upright picture; its orientation is the caller's business, since a CGImage has none.
    public func setImage(_ image: CGImage) async throws {
        try await setImage(Picture(image))
    }

    public func setImage(_ picture: Picture) async throws {
        let framed = try Contract.encoderTakesPicture ? picture.pixelBuffer() : picture.tensor()
        var values = try await run(Contract.encoder, Contract.encoder.entryPoints[0], [Contract.image: framed])
        if let prologue = Contract.prologue {
            values.merge(try await run(prologue, prologue.entryPoints[0], values)) { old, _ in old }
        }
        known = values
        size = (picture.width, picture.height)
    }

    /// Masks of every prompt, in order: the one that SAM's rule picks, or with `allMasks` all that were trained.
    public func predict(_ prompts: [Prompt], allMasks: Bool = false) async throws -> [[Mask]] {
        guard size.width > 0 else { throw Failure.noImage }
        let (width, height) = size
        let image = known
        let packed = try prompts.map { try PackedPrompt($0, width: width, height: height) }
        let graph = prompts.contains { $0.mask != nil } ? Contract.maskDecoder : Contract.decoder
        let columns = AxisTaps(original: width, resized: resizedSize(width: width, height: height).width)
        let rows = AxisTaps(original: height, resized: resizedSize(width: width, height: height).height)
        var answers: [[Mask]] = []
        var start = 0
        while start < packed.count {
            let rest = packed[start...]
            let entry = try choose(graph.entryPoints, prompts: rest.count, points: rest.map(\.labels.count).max() ?? 0)
            let part = Array(rest.prefix(entry.flexible ? min(entry.prompts, Contract.chunk) : entry.prompts))
            let tensors = decoderInputs(part, graph, entry).merging(image) { own, _ in own }
            let found = try await run(graph, entry, tensors)
            let (logits, scores) = (try floats(found, Contract.lowResMasks), try floats(found, Contract.iouPredictions))
            for (number, prompt) in part.enumerated() {
                let own = Array(scores[number * Contract.maskCount ..< (number + 1) * Contract.maskCount])
                let boxed = prompt.labels.contains(Contract.labelBoxTopLeft)
                let best = selectMask(own, tokens: prompt.labels.count, boxed: boxed)
                let chosen = allMasks ? Contract.maskOutputs : [best]
                answers.append(chosen.map { index in
                    let area = Contract.lowRes * Contract.lowRes
                    let first = (number * Contract.maskCount + index) * area
                    let one = Array(logits[first ..< first + area])
                    return Mask(
                        index: index, score: own[index], logits: one, width: width, height: height,
                        pixels: upscale(one, rows: rows, columns: columns))
                })
            }
            start += part.count
        }
        return answers
    }

    private func model(_ entry: EntryPoint) async throws -> MLModel {
        let key = "\(entry.file) \(entry.function ?? "")"
        if let loaded = models[key] { return loaded }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        if let function = entry.function {
            guard #available(iOS 18.0, macOS 15.0, tvOS 18.0, watchOS 11.0, *) else {
                throw Failure.cannotLoad("\(entry.file) has functions, which need iOS 18 or macOS 15")
            }
            configuration.functionName = function
        }
        let package = folder.appendingPathComponent(entry.file + ".mlpackage")
        var compiled = folder.appendingPathComponent(
            package.deletingPathExtension().appendingPathExtension("mlmodelc").lastPathComponent)
        if !FileManager.default.fileExists(atPath: compiled.path) {
            guard FileManager.default.fileExists(atPath: package.path) else {
                throw Failure.cannotLoad("\(folder.path) has neither \(compiled.lastPathComponent) nor \(entry.file)")
            }
            compiled = try await MLModel.compileModel(at: package)
        }
        let loaded = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        models[key] = loaded
        return loaded
    }

    private func run(
        _ graph: Graph, _ entry: EntryPoint, _ values: [String: MLFeatureValue]
    ) async throws -> [String: MLFeatureValue] {
        let inputs = values.filter { name, _ in graph.inputs.contains { $0.name == name } }
        let found = try predictNow(try await model(entry), MLDictionaryFeatureProvider(dictionary: inputs))
        var outputs: [String: MLFeatureValue] = [:]
        for tensor in graph.outputs {
            outputs[tensor.name] = found.featureValue(for: tensor.name)
        }
        return outputs
    }

    /// Not async, because the call of that name that is async needs iOS 17.
    private func predictNow(_ model: MLModel, _ inputs: MLFeatureProvider) throws -> MLFeatureProvider {
        try model.prediction(from: inputs)
    }

    private func floats(_ values: [String: MLFeatureValue], _ name: String) throws -> [Float] {
        guard let array = values[name]?.multiArrayValue else {
            throw Failure.cannotLoad("a package has no output \(name)")
        }
        return MLShapedArray<Float>(array).scalars
    }
}

extension Picture {
    /// In sRGB. samexport's own code neither converts profiles nor blends alpha with black, as this does.
    public init(_ image: CGImage) throws {
        let (width, height) = (image.width, image.height)
        var rgbx = [UInt8](repeating: 0, count: 4 * width * height)
        try rgbx.withUnsafeMutableBytes { bytes in
            guard let space = CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { throw Failure.badPicture("\(width) x \(height) pixels cannot be drawn") }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
        }
        var rgb = [UInt8](repeating: 0, count: 3 * width * height)
        for pixel in 0 ..< width * height {
            for channel in 0 ..< 3 { rgb[3 * pixel + channel] = rgbx[4 * pixel + channel] }
        }
        try self.init(width: width, height: height, rgb: rgb)
    }

    /// What an encoder with a tensor takes: planes of R, G and B, right and below the picture the pixel mean.
    func tensor() throws -> MLFeatureValue {
        let (small, side) = (try resized(), Contract.frameSize)
        var values = [Float]()
        values.reserveCapacity(3 * side * side)
        for channel in 0 ..< 3 {
            var plane = [Float](repeating: Contract.pixelMean[channel], count: side * side)
            for y in 0 ..< small.height {
                for x in 0 ..< small.width {
                    plane[y * side + x] = Float(small.rgb[3 * (y * small.width + x) + channel])
                }
            }
            values += plane
        }
        let shape = Contract.encoder.inputs[0].shape(prompts: 1, points: 1)
        return MLFeatureValue(multiArray: MLMultiArray(MLShapedArray<Float>(scalars: values, shape: shape)))
    }

    /// What an encoder with a picture takes: the same, the pixel mean rounded to whole numbers.
    func pixelBuffer() throws -> MLFeatureValue {
        let (small, side) = (try resized(), Contract.frameSize)
        var created: CVPixelBuffer?
        let options = [kCVPixelBufferIOSurfacePropertiesKey as String: [String: String]()] as CFDictionary
        CVPixelBufferCreate(kCFAllocatorDefault, side, side, kCVPixelFormatType_32BGRA, options, &created)
        guard let buffer = created, CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess else {
            throw Failure.badPicture("no pixel buffer of \(side) x \(side)")
        }
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer)?.assumingMemoryBound(to: UInt8.self) else {
            throw Failure.badPicture("a pixel buffer without memory")
        }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        let mean = Contract.pixelMean.map { UInt8($0.rounded(.toNearestOrEven)) }
        for y in 0 ..< side {
            for x in 0 ..< side {
                let pixel = base + y * stride + 4 * x
                let inside = x < small.width && y < small.height
                for channel in 0 ..< 3 {
                    // blue comes first
                    pixel[2 - channel] = inside ? small.rgb[3 * (y * small.width + x) + channel] : mean[channel]
                }
                pixel[3] = 255
            }
        }
        return MLFeatureValue(pixelBuffer: buffer)
    }
}

/// The prompt tensors of one call, filled up with absent slots to the size of the entry point.
func decoderInputs(
    _ prompts: [PackedPrompt], _ graph: Graph, _ entry: EntryPoint
) -> [String: MLFeatureValue] {
    let count = entry.flexible ? prompts.count : entry.prompts
    let points = entry.flexible ? max(1, prompts.map(\.labels.count).max() ?? 1) : entry.points
    let area = Contract.lowRes * Contract.lowRes
    var coords = [Float](repeating: 0, count: 2 * count * points)
    var labels = [Float](repeating: Contract.labelAbsent, count: count * points)
    var masks = [Float](repeating: 0, count: graph.inputs.contains { $0.name == Contract.maskInput } ? count * area : 0)
    var hasMask = [Float](repeating: 0, count: count)
    for (number, prompt) in prompts.enumerated() {
        coords.replaceSubrange(2 * number * points ..< 2 * number * points + prompt.coords.count, with: prompt.coords)
        labels.replaceSubrange(number * points ..< number * points + prompt.labels.count, with: prompt.labels)
        if let mask = prompt.mask {
            masks.replaceSubrange(number * area ..< (number + 1) * area, with: mask)
            hasMask[number] = 1
        }
    }
    let scalars = [
        Contract.pointCoords: coords, Contract.pointLabels: labels,
        Contract.maskInput: masks, Contract.hasMaskInput: hasMask,
    ]
    var values: [String: MLFeatureValue] = [:]
    for tensor in graph.inputs {
        guard let own = scalars[tensor.name] else { continue }
        let shape = tensor.shape(prompts: count, points: points)
        values[tensor.name] = MLFeatureValue(multiArray: MLMultiArray(MLShapedArray<Float>(scalars: own, shape: shape)))
    }
    return values
}
#endif
