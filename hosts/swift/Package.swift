// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "RecipeHost",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "RecipeHost", targets: ["RecipeHost"])],
    targets: [
        .target(name: "RecipeHost"),
        // answers over packages that another process runs: how the tests hold the loop against the evaluator
        .executableTarget(name: "recipe-play", dependencies: ["RecipeHost"]),
        .testTarget(name: "RecipeHostTests", dependencies: ["RecipeHost"]),
    ]
)
