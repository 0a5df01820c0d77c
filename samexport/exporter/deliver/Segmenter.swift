import CoreGraphics
@preconcurrency import CoreML
import CoreVideo
import Foundation

/// The packages of this bundle: load, set a picture, predict, upscale.
///
///     let segmenter = Segmenter(folder: Bundle.main.resourceURL!)
///     try await segmenter.setImage(cgImage)
///     let click = Segmenter.Prompt(points: [CGPoint(x: 420, y: 300)], inside: [true])
///     let masks = try await segmenter.predict([click])[0]
///
/// `folder` holds the compiled packages (`.mlmodelc`, what Xcode puts into the app) or the `.mlpackage`s of the
/// bundle, which are then compiled at the first use.
@available(iOS 16.0, macOS 13.0, tvOS 16.0, watchOS 9.0, *)
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

@available(iOS 16.0, macOS 13.0, tvOS 16.0, watchOS 9.0, *)
extension Segmenter {
    /// What to segment, in pixels of the picture. A prompt has points, a box or a mask, or several of them.
    public struct Prompt: Sendable {
        public var points: [CGPoint]
        /// One a point: true inside the object, false outside.
        public var inside: [Bool]
        public var box: CGRect?
        /// `Mask.logits` of an earlier answer, to refine it.
        public var mask: [Float]?

        public init(points: [CGPoint] = [], inside: [Bool] = [], box: CGRect? = nil, mask: [Float]? = nil) {
            self.points = points
            self.inside = inside
            self.box = box
            self.mask = mask
        }
    }

    /// One answer to a prompt.
    public struct Mask: Sendable {
        /// Which of the model's masks this is: 0 answers a clear prompt, the others an ambiguous one.
        public let index: Int
        /// The model's guess of the IoU; may exceed 1.
        public let score: Float
        /// `Contract.lowRes` squared, row by row; the mask is where they are positive.
        public let logits: [Float]
        public let width: Int
        public let height: Int
        /// True inside, row by row, at the size of the picture.
        public let pixels: [Bool]
    }

    public enum Failure: Error, Equatable {
        case badPicture(String)
        case badPrompt(String)
        case noImage
        case cannotLoad(String)
    }

    /// RGB, 8 bits, row by row.
    public struct Picture: Sendable {
        public let width: Int
        public let height: Int
        public let rgb: [UInt8]

        public init(width: Int, height: Int, rgb: [UInt8]) throws {
            guard width > 0, height > 0, rgb.count == 3 * width * height else {
                throw Failure.badPicture("\(rgb.count) bytes are not \(width) x \(height) pixels of RGB")
            }
            self.width = width
            self.height = height
            self.rgb = rgb
        }

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

        /// The long side scaled to the frame, with the pixels that Pillow's bilinear filter makes: it widens when it
        /// shrinks and rounds to 8 bits after each axis. vImage and Core Graphics are faster and give other pixels.
        /// Pillow 13 does the other axis first where a picture is about twice as tall as wide: bytes differ by one.
        func resized() throws -> Picture {
            let (newWidth, newHeight) = resizedSize(width: width, height: height)
            let rows = Lines(count: height, from: width, to: newWidth, step: 3, line: 3 * width)
            let columns = Lines(count: newWidth, from: height, to: newHeight, step: 3 * newWidth, line: 3)
            let narrow = resample(rgb, rows, across: false)
            return try Picture(width: newWidth, height: newHeight, rgb: resample(narrow, columns, across: true))
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
}

/// One size of a graph: a package, and in it a function if it has several. Flexible sizes are upper bounds.
private struct EntryPoint: Sendable {
    let file: String
    let function: String?
    let prompts: Int
    let points: Int
    let flexible: Bool
}

private enum Axis: Sendable {
    case fixed(Int)
    case prompts
    case points
}

private struct Tensor: Sendable {
    let name: String
    let axes: [Axis]

    func shape(prompts: Int, points: Int) -> [Int] {
        axes.map { axis in
            switch axis {
            case .fixed(let size): return size
            case .prompts: return prompts
            case .points: return points
            }
        }
    }
}

private struct Graph: Sendable {
    let entryPoints: [EntryPoint]
    let inputs: [Tensor]
    let outputs: [Tensor]
}

/// A prompt as the decoder sees it: its points, then the corners of its box; without a box the padding point.
@available(iOS 16.0, macOS 13.0, tvOS 16.0, watchOS 9.0, *)
private struct PackedPrompt: Sendable {
    private(set) var coords: [Float] = []
    private(set) var labels: [Float] = []
    let mask: [Float]?

    init(_ prompt: Segmenter.Prompt, width: Int, height: Int) throws {
        guard prompt.points.count == prompt.inside.count else {
            throw Segmenter.Failure.badPrompt("\(prompt.points.count) points and \(prompt.inside.count) labels")
        }
        guard !prompt.points.isEmpty || prompt.box != nil || prompt.mask != nil else {
            throw Segmenter.Failure.badPrompt("a prompt needs a point, a box or a mask")
        }
        if let mask = prompt.mask {
            guard mask.count == Contract.lowRes * Contract.lowRes, mask.allSatisfy(\.isFinite) else {
                throw Segmenter.Failure.badPrompt("a mask is \(Contract.lowRes) x \(Contract.lowRes) finite logits")
            }
        }
        mask = prompt.mask
        let small = resizedSize(width: width, height: height)
        let scale = (x: Double(small.width) / Double(width), y: Double(small.height) / Double(height))
        func add(_ point: CGPoint, _ label: Float) throws {
            let (x, y) = (Double(point.x), Double(point.y))
            guard x >= 0, y >= 0, x <= Double(width), y <= Double(height) else {
                throw Segmenter.Failure.badPrompt("(\(x), \(y)) is outside the picture, \(width) x \(height)")
            }
            coords += [Float(x * scale.x), Float(y * scale.y)]
            labels.append(label)
        }
        for (point, inside) in zip(prompt.points, prompt.inside) {
            try add(point, inside ? Contract.labelInside : Contract.labelOutside)
        }
        if let box = prompt.box {
            guard box.width > 0, box.height > 0 else { throw Segmenter.Failure.badPrompt("an empty box") }
            try add(CGPoint(x: box.minX, y: box.minY), Contract.labelBoxTopLeft)
            try add(CGPoint(x: box.maxX, y: box.maxY), Contract.labelBoxBottomRight)
        } else if !prompt.points.isEmpty {
            coords += [0, 0]
            labels.append(Contract.labelPadding)
        }
    }
}

/// The smallest entry point with room for all, else the largest, which is then called several times.
@available(iOS 16.0, macOS 13.0, tvOS 16.0, watchOS 9.0, *)
private func choose(_ entryPoints: [EntryPoint], prompts: Int, points: Int) throws -> EntryPoint {
    let roomy = entryPoints.filter { $0.points >= points }
    let fitting = roomy.filter { $0.prompts >= prompts }
    if let smallest = fitting.min(by: { ($0.prompts, $0.points) < ($1.prompts, $1.points) }) { return smallest }
    guard let largest = roomy.max(by: { ($0.prompts, -$0.points) < ($1.prompts, -$1.points) }) else {
        let most = entryPoints.map(\.points).max() ?? 0
        throw Segmenter.Failure.badPrompt("\(points) points, padding and box included; the packages take \(most)")
    }
    return largest
}

/// The prompt tensors of one call, filled up with absent slots to the size of the entry point.
@available(iOS 16.0, macOS 13.0, tvOS 16.0, watchOS 9.0, *)
private func decoderInputs(
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

/// SAM's rule: a box, or three tokens or more, make a prompt clear, which mask 0 answers; else the best score of the
/// others. The padding point is a token.
private func selectMask(_ scores: [Float], tokens: Int, boxed: Bool) -> Int {
    if boxed || tokens >= 3, Contract.maskOutputs.contains(0) { return 0 }
    var best: Int?
    for index in Contract.maskOutputs where index != 0 {
        if best == nil || scores[index] > scores[best!] { best = index }
    }
    return best ?? 0
}

/// The picture's size in the frame.
private func resizedSize(width: Int, height: Int) -> (width: Int, height: Int) {
    let scale = Double(Contract.frameSize) / Double(max(width, height))
    return (max(1, Int(Double(width) * scale + 0.5)), max(1, Int(Double(height) * scale + 0.5)))
}

/// `count` lines of RGB, each to be scaled `from` pixels `to` pixels; `step` bytes lie between the pixels of a line,
/// `line` bytes between the lines.
private struct Lines {
    let count: Int
    let from: Int
    let to: Int
    let step: Int
    let line: Int
}

/// Scale lines of 8-bit RGB by a triangle filter in whole numbers. With `across` the lines lie beside each other.
private func resample(_ source: [UInt8], _ lines: Lines, across: Bool) -> [UInt8] {
    if lines.from == lines.to { return source }
    let bits = 22
    let (from, to, step) = (lines.from, lines.to, lines.step)
    let scale = Double(from) / Double(to)
    let support = max(scale, 1)
    let taps = (0 ..< to).map { target -> (first: Int, weights: [Int]) in
        let centre = (Double(target) + 0.5) * scale
        let first = max(0, Int(centre - support + 0.5))
        let last = min(from, Int(centre + support + 0.5))
        let weights = (first ..< last).map { max(0, 1 - abs((Double($0) - centre + 0.5) / support)) }
        let total = weights.reduce(0, +)
        return (first, weights.map { Int(($0 / total * Double(1 << bits)).rounded(.toNearestOrAwayFromZero)) })
    }
    var result = [UInt8](repeating: 0, count: 3 * lines.count * to)
    source.withUnsafeBufferPointer { pixels in
        // along the rows of the source, as memory lies
        for outer in 0 ..< (across ? to : lines.count) {
            for inner in 0 ..< (across ? lines.count : to) {
                let (target, number) = across ? (outer, inner) : (inner, outer)
                let place = across ? target * step + number * lines.line : 3 * (number * to + target)
                for channel in 0 ..< 3 {
                    var sum = 1 << (bits - 1)
                    var index = number * lines.line + taps[target].first * step + channel
                    for weight in taps[target].weights {
                        sum += weight * Int(pixels[index])
                        index += step
                    }
                    result[place + channel] = UInt8(min(max(sum >> bits, 0), 255))
                }
            }
        }
    }
    return result
}

/// The four low-resolution places, and their weights, that each place of one axis of the picture is mixed from:
/// to the frame, cut to the resized picture, to the picture, both bilinear with half-pixel centres.
private struct AxisTaps {
    private(set) var index: [Int] = []
    private(set) var weight: [Float] = []

    init(original: Int, resized: Int) {
        for place in 0 ..< original {
            let outer = AxisTaps.bilinear(place, source: resized, target: original)
            for (middle, share) in [(outer.first, 1 - outer.share), (outer.second, outer.share)] {
                let inner = AxisTaps.bilinear(middle, source: Contract.lowRes, target: Contract.frameSize)
                index += [inner.first, inner.second]
                weight += [Float(share * (1 - inner.share)), Float(share * inner.share)]
            }
        }
    }

    private static func bilinear(_ place: Int, source: Int, target: Int) -> (first: Int, second: Int, share: Double) {
        let centre = max(0, (Double(place) + 0.5) * (Double(source) / Double(target)) - 0.5)
        let first = min(Int(centre), source - 1)
        return (first, min(first + 1, source - 1), centre - Double(first))
    }
}

/// Low-resolution logits to a mask of the picture's size.
private func upscale(_ logits: [Float], rows: AxisTaps, columns: AxisTaps) -> [Bool] {
    let (width, height, side) = (columns.index.count / 4, rows.index.count / 4, Contract.lowRes)
    var wide = [Float](repeating: 0, count: side * width)
    for y in 0 ..< side {
        for x in 0 ..< width {
            var sum: Float = 0
            for tap in 4 * x ..< 4 * x + 4 { sum += columns.weight[tap] * logits[y * side + columns.index[tap]] }
            wide[y * width + x] = sum
        }
    }
    var mask = [Bool](repeating: false, count: width * height)
    for y in 0 ..< height {
        let taps = 4 * y ..< 4 * y + 4
        for x in 0 ..< width {
            var sum: Float = 0
            for tap in taps { sum += rows.weight[tap] * wide[rows.index[tap] * width + x] }
            mask[y * width + x] = sum > Contract.threshold
        }
    }
    return mask
}
