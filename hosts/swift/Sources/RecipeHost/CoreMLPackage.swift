#if canImport(CoreML)
import CoreML

/// A compiled package (.mlmodelc) that Core ML runs, one loaded model for each function.
public final class CoreMLPackage: Package {
    private let models: [String: MLModel]

    /// Loads every function that the manifest describes; the first load on a device can take long.
    public init(compiled: URL, functions: [String], units: MLComputeUnits = .cpuAndNeuralEngine) async throws {
        var models: [String: MLModel] = [:]
        for function in functions {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = function
            models[function] = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        }
        self.models = models
    }

    /// Any function's state serves all of them. A package without states, such as a head, has an empty one of its own.
    public func makeState() throws -> AnyObject {
        guard let model = models.values.first(where: \.hasStates) else { return NoState() }
        return model.makeState()
    }

    public func call(_ function: String, _ inputs: [String: Tensor], state: AnyObject) throws -> [String: Tensor] {
        guard let model = models[function] else { throw HostError("the package has no function \(function)") }
        let given = try MLDictionaryFeatureProvider(dictionary: inputs.mapValues(\.array))
        let found =
            if let state = state as? MLState { try model.prediction(from: given, using: state) } else {
                try model.prediction(from: given)
            }
        var outputs: [String: Tensor] = [:]
        for name in found.featureNames {
            outputs[name] = try found.featureValue(for: name)?.multiArrayValue.map { try Tensor($0, name) }
        }
        return outputs
    }
}

private final class NoState {}

extension MLModel {
    fileprivate var hasStates: Bool { !modelDescription.stateDescriptionsByName.isEmpty }
}

extension Tensor {
    fileprivate var array: MLMultiArray {
        switch self {
        case .int32(let values, let shape): MLMultiArray(MLShapedArray<Int32>(scalars: values, shape: shape))
        case .float16(let values, let shape): MLMultiArray(MLShapedArray<Float16>(scalars: values, shape: shape))
        }
    }

    /// By its strides: rows may be padded in memory, and `scalars` leaves the gaps out.
    fileprivate init(_ array: MLMultiArray, _ name: String) throws {
        let shape = array.shape.map(\.intValue)
        switch array.dataType {
        case .int32: self = .int32(MLShapedArray<Int32>(array).scalars, shape: shape)
        case .float16: self = .float16(MLShapedArray<Float16>(array).scalars, shape: shape)
        default: throw HostError("\(name) is neither int32 nor float16")
        }
    }
}

extension Chain {
    /// A bundle whose packages are compiled: `compiled` says where each is, by the name that manifest.json has.
    public static func load(
        _ folder: URL, units: MLComputeUnits = .cpuAndNeuralEngine, compiled: (String) throws -> URL
    ) async throws -> Chain {
        let manifest = try Manifest.read(from: folder)
        var packages: [any Package] = []
        for program in manifest.programs {
            let place = try compiled(program.file)
            packages.append(try await CoreMLPackage(compiled: place, functions: Array(program.functions.keys), units: units))
        }
        let tables = try manifest.tables.map { ($0.input, try Table($0, in: folder)) }
        return try Chain(manifest: manifest, packages: packages, tables: Dictionary(uniqueKeysWithValues: tables))
    }
}
#endif
