import Foundation
import XCTest

@testable import SamExport

/// The arithmetic around the packages against what samexport's Python code computed: `golden.json`.
final class HostTests: XCTestCase {
    private struct Golden: Decodable {
        struct Resize: Decodable {
            let height: Int, width: Int, size: Int, resized: [Int], checksum: UInt32
        }
        struct Given: Decodable {
            let points: [Double], labels: [Int], box: [Double]
        }
        struct Pack: Decodable {
            let size: Int, prompts: [Given], coords: [[Float]], labels: [[Float]]
        }
        struct Select: Decodable {
            let scores: [Float], tokens: Int, boxed: Bool, outputs: [Int], mask: Int
        }
        struct Entry: Decodable {
            let name: String, prompts: Int, points: Int
        }
        struct Choice: Decodable {
            let prompts: Int, points: Int, entry: String
        }
        struct Upscale: Decodable {
            let height: Int, width: Int, seed: Int, area: Int, checksum: UInt32
        }
        let resize: [Resize]
        let pack: [Pack]
        let select: [Select]
        let entries: [Entry]
        let choose: [Choice]
        let masks: [Upscale]
    }

    private func golden() throws -> Golden {
        let url = try XCTUnwrap(Bundle.module.url(forResource: "golden", withExtension: "json"))
        return try JSONDecoder().decode(Golden.self, from: Data(contentsOf: url))
    }

    private func picture(_ height: Int, _ width: Int) throws -> Picture {
        var rgb = [UInt8]()
        for y in 0 ..< height {
            for x in 0 ..< width {
                for c in 0 ..< 3 { rgb.append(UInt8((x * 37 + y * 91 + c * 53 + x * y % 17 * 11) % 256)) }
            }
        }
        return try Picture(width: width, height: height, rgb: rgb)
    }

    /// Each byte times its place, counted anew from 1 every 65521 bytes.
    private func checksum<Bytes: Sequence>(_ bytes: Bytes) -> UInt32 where Bytes.Element == UInt8 {
        var sum: UInt32 = 0
        for (place, byte) in bytes.enumerated() { sum &+= UInt32(byte) &* UInt32(place % 65521 + 1) }
        return sum
    }

    func testPicturesAreResizedToTheBit() throws {
        for known in try golden().resize {
            let found = try picture(known.height, known.width).resized(in: Frame(size: known.size, lowRes: 16))
            XCTAssertEqual([found.height, found.width], known.resized)
            XCTAssertEqual(checksum(found.rgb), known.checksum, "\(known.width) x \(known.height)")
        }
    }

    func testPromptsArePacked() throws {
        for known in try golden().pack {
            for (number, given) in known.prompts.enumerated() {
                let points = stride(from: 0, to: given.points.count, by: 2).map {
                    CGPoint(x: given.points[$0], y: given.points[$0 + 1])
                }
                let sides = given.box
                let box = sides.isEmpty
                    ? nil : CGRect(x: sides[0], y: sides[1], width: sides[2] - sides[0], height: sides[3] - sides[1])
                let prompt = Prompt(points: points, inside: given.labels.map { $0 == 1 }, box: box)
                let found = try PackedPrompt(prompt, width: 40, height: 27, in: Frame(size: known.size, lowRes: 16))
                XCTAssertEqual(found.labels, known.labels[number])
                XCTAssertEqual(found.coords.count, known.coords[number].count)
                for (one, other) in zip(found.coords, known.coords[number]) {
                    XCTAssertEqual(one, other, accuracy: 1e-4)
                }
            }
        }
    }

    func testTheSameMaskAnswers() throws {
        for known in try golden().select {
            let found = selectMask(known.scores, tokens: known.tokens, boxed: known.boxed, outputs: known.outputs)
            XCTAssertEqual(found, known.mask)
        }
    }

    func testTheSameEntryPointIsChosen() throws {
        let known = try golden()
        let entries = known.entries.map {
            EntryPoint(file: $0.name, function: nil, prompts: $0.prompts, points: $0.points, flexible: false)
        }
        for choice in known.choose {
            XCTAssertEqual(try choose(entries, prompts: choice.prompts, points: choice.points).file, choice.entry)
        }
    }

    func testLogitsAreScaledToThePicture() throws {
        let frame = Frame(size: 64, lowRes: 16)
        for known in try golden().masks {
            let logits = (0 ..< 256).map { place -> Float in
                let (x, y) = (place % 16, place / 16)
                return Float((x * 7 + y * 13 + x * y + known.seed * 5) % 29 - 14) / 4 + 0.1371
            }
            let small = resizedSize(width: known.width, height: known.height, in: frame)
            let mask = upscale(
                logits, rows: AxisTaps(original: known.height, resized: small.height, in: frame),
                columns: AxisTaps(original: known.width, resized: small.width, in: frame), in: frame)
            XCTAssertEqual(mask.filter { $0 }.count, known.area)
            XCTAssertEqual(checksum(mask.map { $0 ? UInt8(1) : 0 }), known.checksum)
        }
    }

    func testWhatIsNoPromptIsRefused() {
        XCTAssertThrowsError(try PackedPrompt(Prompt(), width: 40, height: 27))
        let outside = Prompt(points: [CGPoint(x: 41, y: 0)], inside: [true])
        XCTAssertThrowsError(try PackedPrompt(outside, width: 40, height: 27))
    }
}
