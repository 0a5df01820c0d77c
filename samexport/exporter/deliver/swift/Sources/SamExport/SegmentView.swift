#if canImport(SwiftUI) && canImport(CoreML)
import CoreGraphics
import Foundation
import SwiftUI

/// The smallest sample: a picture; a tap on it shows the mask that answers.
///
///     SegmentView(picture: cgImage, segmenter: Segmenter(folder: Bundle.main.resourceURL!))
public struct SegmentView: View {
    private let picture: CGImage
    private let segmenter: Segmenter
    @State private var overlay: CGImage?
    @State private var said = "Looking at the picture"
    @State private var ready = false

    public init(picture: CGImage, segmenter: Segmenter) {
        self.picture = picture
        self.segmenter = segmenter
    }

    public var body: some View {
        VStack {
            Image(decorative: picture, scale: 1)
                .resizable()
                .overlay(tappable)
                .aspectRatio(CGFloat(picture.width) / CGFloat(picture.height), contentMode: .fit)
            Text(said).accessibilityAddTraits(.updatesFrequently)
        }
        .task { await look() }
    }

    private var tappable: some View {
        GeometryReader { place in
            ZStack {
                if let overlay {
                    Image(decorative: overlay, scale: 1).resizable()
                }
                Color.clear.contentShape(Rectangle())
            }
            .gesture(DragGesture(minimumDistance: 0).onEnded { touch in
                let x = touch.location.x / place.size.width * CGFloat(picture.width)
                let y = touch.location.y / place.size.height * CGFloat(picture.height)
                Task { await answer(CGPoint(x: x, y: y)) }
            })
        }
    }

    private func look() async {
        do {
            try await segmenter.setImage(picture)
            ready = true
            said = "Tap on what you want"
        } catch {
            said = String(describing: error)
        }
    }

    private func answer(_ point: CGPoint) async {
        guard ready else { return }
        do {
            let mask = try await segmenter.predict([Prompt(points: [point], inside: [true])])[0][0]
            overlay = mask.tinted()
            said = "Score \(mask.score)"
        } catch {
            said = String(describing: error)
        }
    }
}

extension Mask {
    /// Half transparent blue where the mask is.
    func tinted() -> CGImage? {
        var rgba = [UInt8](repeating: 0, count: 4 * width * height)
        for (number, inside) in pixels.enumerated() where inside {
            // premultiplied
            rgba.replaceSubrange(4 * number ..< 4 * number + 4, with: [15, 55, 115, 128])
        }
        guard let data = CGDataProvider(data: Data(rgba) as CFData) else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
            space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.premultipliedLast.rawValue),
            provider: data, decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}
#endif
