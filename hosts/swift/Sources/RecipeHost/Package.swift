/// A package as a host calls it. Core ML is one (`CoreMLPackage`); tests have others.
///
/// Calls of one state must not overlap: a `Session` makes one at a time.
public protocol Package: AnyObject {
    /// A state of zeros, that all functions of the package take.
    func makeState() throws -> AnyObject

    /// The outputs of a function by name; `state` goes on.
    func call(_ function: String, _ inputs: [String: Tensor], state: AnyObject) throws -> [String: Tensor]
}

/// A bundle's packages and tables as one: a function runs in each package that has it, in running order.
public final class Chain {
    public let manifest: Manifest
    private let packages: [any Package]
    private let tables: [String: Table]
    private var states: [AnyObject]?
    /// What the next call is given of the tensors that belong to a position; nothing of one is its zeros.
    var carried: [String: Tensor] = [:]
    private var caches: [String: Tensor] = [:]

    /// `packages` are those of `manifest.programs`, in their order; `tables` are by the input that takes their rows.
    public init(manifest: Manifest, packages: [any Package], tables: [String: Table] = [:]) throws {
        guard packages.count == manifest.programs.count else {
            throw HostError("\(manifest.name) has \(manifest.programs.count) packages, not \(packages.count)")
        }
        (self.manifest, self.packages, self.tables) = (manifest, packages, tables)
    }

    /// The first package's function of that name: all of a chain take the same tokens.
    public func described(_ function: String) -> Manifest.Function? {
        manifest.programs.lazy.compactMap { $0.functions[function] }.first
    }

    /// Everything that the packages of a function take, by name.
    public func inputs(_ function: String) -> Set<String> {
        Set(manifest.programs.flatMap { $0.functions[function]?.inputs.keys.map { $0 } ?? [] })
    }

    /// Starts anew, with states of zeros.
    public func reset() {
        (states, carried, caches) = (nil, [:], [:])
    }

    /// Whether calls give tensors that belong to one position.
    var carries: Bool {
        manifest.carried.values.contains { if case .tensor = $0 { true } else { false } }
    }

    /// Calls a function; the rows of the tokens are looked up here, and what one package gives is handed on.
    public func call(_ function: String, tokens: [Int], _ inputs: [String: Tensor]) throws -> [String: Tensor] {
        let states = try self.states ?? packages.map { try $0.makeState() }
        self.states = states
        var known = inputs
        for (input, table) in tables where self.inputs(function).contains(input) {
            // of a per-layer table, tokens that have no row of their own take that of token 0, as in transformers
            known[input] = try table.rows(input == "embedding" ? tokens : tokens.map { $0 < table.count ? $0 : 0 })
        }
        var found = false
        for (index, program) in manifest.programs.enumerated() {
            guard let described = program.functions[function] else { continue }
            var given: [String: Tensor] = [:]
            for (name, port) in described.inputs {
                let kept = carried[name] ?? caches[name] ?? (manifest.carried[name] == nil ? nil : .zeros(port.shape))
                guard let tensor = known[name] ?? kept else {
                    throw HostError("\(program.file): nothing gives \(name) of \(function)")
                }
                guard tensor.shape == port.shape else {
                    throw HostError("\(program.file): \(name) of \(function) is \(tensor.shape) and must be \(port.shape)")
                }
                given[name] = tensor
            }
            known.merge(try packages[index].call(function, given, state: states[index])) { _, new in new }
            found = true
        }
        guard found else { throw HostError("\(manifest.name) has no function \(function)") }
        try keep(known)
        return known
    }

    /// Keeps what a call has left for the next one: tensors as they are, of caches the rows of its real tokens.
    private func keep(_ known: [String: Tensor]) throws {
        for (name, kind) in manifest.carried {
            guard let new = known["new_\(name)"] else { continue }
            guard case .cache = kind else {
                carried[name] = new
                continue
            }
            guard let position = try known["position"]?.integers("position").first, new.shape.count == 4 else {
                throw HostError("\(manifest.name): new_\(name) is \(new.shape), which is no rows of a cache")
            }
            let count = try known["count"]?.integers("count").first ?? new.shape[2]
            var cache = try caches.removeValue(forKey: name) ?? zeros(name)  // alone, so that it is written in place
            try cache.write(new, count: count, at: position)
            caches[name] = cache
        }
    }

    /// A cache before the first call, in the shape that its functions take.
    private func zeros(_ name: String) throws -> Tensor {
        let ports = manifest.programs.lazy.flatMap { $0.functions.values }.compactMap { $0.inputs[name] }
        guard let port = ports.first else { throw HostError("\(manifest.name): no function takes \(name)") }
        return .zeros(port.shape)
    }
}
