import Foundation

// The arithmetic around the packages: nothing here needs an Apple system, so `swift test` runs it anywhere.

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

    /// The long side scaled to the frame, with the pixels that Pillow's bilinear filter makes: it widens when it
    /// shrinks and rounds to 8 bits after each axis. vImage and Core Graphics are faster and give other pixels.
    /// Pillow 13 does the other axis first where a picture is about twice as tall as wide: bytes differ by one.
    func resized(in frame: Frame = Contract.frame) throws -> Picture {
        let (newWidth, newHeight) = resizedSize(width: width, height: height, in: frame)
        let rows = Lines(count: height, from: width, to: newWidth, step: 3, line: 3 * width)
        let columns = Lines(count: newWidth, from: height, to: newHeight, step: 3 * newWidth, line: 3)
        let narrow = resample(rgb, rows, across: false)
        return try Picture(width: newWidth, height: newHeight, rgb: resample(narrow, columns, across: true))
    }
}

/// The square that the encoder sees, and the side of the masks that the decoder makes of it.
struct Frame: Sendable {
    let size: Int
    let lowRes: Int
}

/// One size of a graph: a package, and in it a function if it has several. Flexible sizes are upper bounds.
struct EntryPoint: Sendable {
    let file: String
    let function: String?
    let prompts: Int
    let points: Int
    let flexible: Bool
}

enum Axis: Sendable {
    case fixed(Int)
    case prompts
    case points
}

struct Tensor: Sendable {
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

struct Graph: Sendable {
    let entryPoints: [EntryPoint]
    let inputs: [Tensor]
    let outputs: [Tensor]
}

/// A prompt as the decoder sees it: its points, then the corners of its box; without a box the padding point.
struct PackedPrompt: Sendable {
    private(set) var coords: [Float] = []
    private(set) var labels: [Float] = []
    let mask: [Float]?

    init(_ prompt: Prompt, width: Int, height: Int, in frame: Frame = Contract.frame) throws {
        guard prompt.points.count == prompt.inside.count else {
            throw Failure.badPrompt("\(prompt.points.count) points and \(prompt.inside.count) labels")
        }
        guard !prompt.points.isEmpty || prompt.box != nil || prompt.mask != nil else {
            throw Failure.badPrompt("a prompt needs a point, a box or a mask")
        }
        if let mask = prompt.mask {
            guard mask.count == frame.lowRes * frame.lowRes, mask.allSatisfy(\.isFinite) else {
                throw Failure.badPrompt("a mask is \(frame.lowRes) x \(frame.lowRes) finite logits")
            }
        }
        mask = prompt.mask
        let small = resizedSize(width: width, height: height, in: frame)
        let scale = (x: Double(small.width) / Double(width), y: Double(small.height) / Double(height))
        func add(_ point: CGPoint, _ label: Float) throws {
            let (x, y) = (Double(point.x), Double(point.y))
            guard x >= 0, y >= 0, x <= Double(width), y <= Double(height) else {
                throw Failure.badPrompt("(\(x), \(y)) is outside the picture, \(width) x \(height)")
            }
            coords += [Float(x * scale.x), Float(y * scale.y)]
            labels.append(label)
        }
        for (point, inside) in zip(prompt.points, prompt.inside) {
            try add(point, inside ? Contract.labelInside : Contract.labelOutside)
        }
        if let box = prompt.box {
            guard box.width > 0, box.height > 0 else { throw Failure.badPrompt("an empty box") }
            try add(CGPoint(x: box.minX, y: box.minY), Contract.labelBoxTopLeft)
            try add(CGPoint(x: box.maxX, y: box.maxY), Contract.labelBoxBottomRight)
        } else if !prompt.points.isEmpty {
            coords += [0, 0]
            labels.append(Contract.labelPadding)
        }
    }
}

/// The smallest entry point with room for all, else the largest, which is then called several times.
func choose(_ entryPoints: [EntryPoint], prompts: Int, points: Int) throws -> EntryPoint {
    let roomy = entryPoints.filter { $0.points >= points }
    let fitting = roomy.filter { $0.prompts >= prompts }
    if let smallest = fitting.min(by: { ($0.prompts, $0.points) < ($1.prompts, $1.points) }) { return smallest }
    guard let largest = roomy.max(by: { ($0.prompts, -$0.points) < ($1.prompts, -$1.points) }) else {
        let most = entryPoints.map(\.points).max() ?? 0
        throw Failure.badPrompt("\(points) points, padding and box included; the packages take \(most)")
    }
    return largest
}

/// SAM's rule: a box, or three tokens or more, make a prompt clear, which mask 0 answers; else the best score of the
/// others. The padding point is a token.
func selectMask(
    _ scores: [Float], tokens: Int, boxed: Bool, outputs: [Int] = Contract.maskOutputs
) -> Int {
    if boxed || tokens >= 3, outputs.contains(0) { return 0 }
    var best: Int?
    for index in outputs where index != 0 {
        if best == nil || scores[index] > scores[best!] { best = index }
    }
    return best ?? 0
}

/// The picture's size in the frame.
func resizedSize(width: Int, height: Int, in frame: Frame = Contract.frame) -> (width: Int, height: Int) {
    let scale = Double(frame.size) / Double(max(width, height))
    return (max(1, Int(Double(width) * scale + 0.5)), max(1, Int(Double(height) * scale + 0.5)))
}

/// `count` lines of RGB, each to be scaled `from` pixels `to` pixels; `step` bytes lie between the pixels of a line,
/// `line` bytes between the lines.
struct Lines {
    let count: Int
    let from: Int
    let to: Int
    let step: Int
    let line: Int
}

/// Scale lines of 8-bit RGB by a triangle filter in whole numbers. With `across` the lines lie beside each other.
func resample(_ source: [UInt8], _ lines: Lines, across: Bool) -> [UInt8] {
    if lines.from == lines.to { return source }
    let bits = 22
    let (from, to, step) = (lines.from, lines.to, lines.step)
    let scale = Double(from) / Double(to)
    let support = max(scale, 1)
    let taps = (0 ..< to).map { target -> (first: Int, weights: [Int]) in
        let centre = (Double(target) + 0.5) * scale
        let first = max(0, Int(centre - support + 0.5))
        let last = min(from, Int(centre + support + 0.5))
        let weights = (first ..< last).map { max(0, 1 - abs((Double($0) - centre + 0.5) * (1 / support))) }
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
struct AxisTaps {
    private(set) var index: [Int] = []
    private(set) var weight: [Float] = []

    init(original: Int, resized: Int, in frame: Frame = Contract.frame) {
        for place in 0 ..< original {
            let outer = AxisTaps.bilinear(place, source: resized, target: original)
            for (middle, share) in [(outer.first, 1 - outer.share), (outer.second, outer.share)] {
                let inner = AxisTaps.bilinear(middle, source: frame.lowRes, target: frame.size)
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
func upscale(
    _ logits: [Float], rows: AxisTaps, columns: AxisTaps, in frame: Frame = Contract.frame
) -> [Bool] {
    let (width, height, side) = (columns.index.count / 4, rows.index.count / 4, frame.lowRes)
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
