// swift-tools-version:5.9
import PackageDescription

// Models are no part of it: an app has the .mlpackages of the bundle among its own resources.
let package = Package(
    name: "SamExport",
    platforms: [.iOS(.v16), .macOS(.v13), .tvOS(.v16), .watchOS(.v9)],
    products: [.library(name: "SamExport", targets: ["SamExport"])],
    targets: [
        .target(name: "SamExport"),
        .testTarget(name: "SamExportTests", dependencies: ["SamExport"], resources: [.copy("golden.json")]),
    ]
)
