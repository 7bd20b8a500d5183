import Foundation

/// manifest.json of format 2, as far as a host needs it (docs/bundle.md). Keys that are not named here are ignored.
public struct Manifest: Decodable, Sendable {
    public static let format = 2

    public let name: String
    public let context: Int
    public let vocabSize: Int
    public let logits: Logits
    public let packages: [Package]
    public let states: [String: State]
    public let carried: [String: Carried]
    public let endTokens: [Int]

    public struct Logits: Decodable, Sendable {
        public let pieces: Int
        public let columns: Int
    }

    public struct Port: Decodable, Sendable, Equatable {
        public let dtype: String
        public let shape: [Int]
    }

    /// `query` is the number of tokens that a call takes, `steps` how many a call of `draft` gives.
    public struct Function: Decodable, Sendable {
        public let query: Int
        public let steps: Int?
        public let inputs: [String: Port]
        public let outputs: [String: Port]
    }

    /// Where the layers of a kind lie in a state. A `window` of nil is a full cache, any other one a ring.
    public struct Places: Decodable, Sendable {
        public let rows: Int
        public let window: Int?
    }

    public struct State: Decodable, Sendable {
        public let kinds: [String: Places]
    }

    /// What a call takes and leaves something of for the next one, as zeros at first.
    public enum Carried: Sendable {
        /// Taken as `NAME` and given whole as `new_NAME`: it belongs to one position.
        case tensor
        /// Keys and values that the host keeps: `new_NAME` has the rows of a call's tokens, and goes back as a state does.
        case cache([String: Places])
    }

    public struct Program: Sendable {
        public let file: String
        public let functions: [String: Function]
    }

    /// A raw file of rows; `block` is how many columns of integers share a scale.
    public struct Table: Sendable {
        public let file: String
        public let dtype: String
        public let rows: Int
        public let columns: Int
        public let block: Int?
        public let offset: Int?
        public let input: String
    }

    public enum Package: Sendable {
        case program(Program)
        case table(Table)
    }

    /// The packages that are run, in running order.
    public var programs: [Program] {
        packages.compactMap { if case .program(let program) = $0 { program } else { nil } }
    }

    public var tables: [Table] {
        packages.compactMap { if case .table(let table) = $0 { table } else { nil } }
    }

    /// The places of every kind, by its name.
    public var kinds: [String: Places] {
        let caches = carried.values.compactMap { if case .cache(let kinds) = $0 { kinds } else { nil } }
        return (states.values.map(\.kinds) + caches).reduce(into: [:]) { $0.merge($1) { first, _ in first } }
    }

    /// Reads the manifest of a bundle. Throws for one that this host cannot run.
    public static func read(from folder: URL) throws -> Manifest {
        try decode(Data(contentsOf: folder.appendingPathComponent("manifest.json")))
    }

    static func decode(_ data: Data) throws -> Manifest {
        do {
            return try JSONDecoder().decode(Manifest.self, from: data)
        } catch let error as DecodingError {
            throw HostError("manifest.json: \(error.place)")
        }
    }

    private enum Key: String, CodingKey {
        case format, name, context, logits, packages, states, host, carried
        case vocabSize = "vocab_size"
        case endTokens = "eos_token_ids"
    }

    public init(from decoder: any Decoder) throws {
        let said = try decoder.container(keyedBy: Key.self)
        let format = try said.decode(Int.self, forKey: .format)
        guard format == Self.format else {
            throw HostError("manifest.json: format \(format) is not \(Self.format): build the bundle again")
        }
        if let host = try said.decodeIfPresent(String.self, forKey: .host) {
            throw HostError("manifest.json: the bundle is for the host \(host)")
        }
        carried = try said.decodeIfPresent([String: Carried].self, forKey: .carried) ?? [:]
        name = try said.decode(String.self, forKey: .name)
        context = try said.decode(Int.self, forKey: .context)
        vocabSize = try said.decode(Int.self, forKey: .vocabSize)
        logits = try said.decode(Logits.self, forKey: .logits)
        packages = try said.decode([Package].self, forKey: .packages)
        states = try said.decode([String: State].self, forKey: .states)
        endTokens = try said.decode([Int].self, forKey: .endTokens)
        guard vocabSize > 0, context > 0, logits.pieces * logits.columns >= vocabSize else {
            throw HostError("manifest.json: logits of \(logits.pieces) x \(logits.columns) do not hold \(vocabSize) tokens")
        }
    }
}

extension Manifest.Carried: Decodable {
    private enum Key: String, CodingKey {
        case role, rollback, kinds
    }

    public init(from decoder: any Decoder) throws {
        let said = try decoder.container(keyedBy: Key.self)
        let role = try said.decode(String.self, forKey: .role)
        let isCache = ["kv", "k", "v"].contains(role)
        guard isCache || ["convolution", "recurrence"].contains(role) else {
            throw HostError("manifest.json: carried: this host does not know the role \(role)")
        }
        let rollback = try said.decode(String.self, forKey: .rollback)
        guard rollback == (isCache ? "rows" : "none") else {
            throw HostError("manifest.json: carried: this host does not know the rollback \(rollback) of the role \(role)")
        }
        self = isCache ? .cache(try said.decode([String: Manifest.Places].self, forKey: .kinds)) : .tensor
    }
}

extension Manifest.Package: Decodable {
    private enum Key: String, CodingKey {
        case file, role, functions, dtype, shape, scales, input
    }

    private struct Scales: Decodable {
        let block: Int
        let offset: Int
    }

    public init(from decoder: any Decoder) throws {
        let said = try decoder.container(keyedBy: Key.self)
        let file = try said.decode(String.self, forKey: .file)
        guard try said.decode(String.self, forKey: .role) == "table" else {
            self = .program(.init(file: file, functions: try said.decode([String: Manifest.Function].self, forKey: .functions)))
            return
        }
        let shape = try said.decode([Int].self, forKey: .shape)
        guard shape.count == 2 else { throw HostError("manifest.json: \(file) is no table of rows and columns") }
        let scales = try said.decodeIfPresent(Scales.self, forKey: .scales)
        self = .table(
            .init(
                file: file, dtype: try said.decode(String.self, forKey: .dtype), rows: shape[0], columns: shape[1],
                block: scales?.block, offset: scales?.offset, input: try said.decode(String.self, forKey: .input)))
    }
}

extension DecodingError {
    /// Which key is wrong, and how.
    fileprivate var place: String {
        switch self {
        case .keyNotFound(let key, _): "there is no \(key.stringValue)"
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
            "\(context.codingPath.map(\.stringValue).joined(separator: ".")): \(context.debugDescription)"
        @unknown default: "\(self)"
        }
    }
}
