/// Answers over packages that another process runs: a call is a line of JSON on standard output, its outputs are one on
/// standard input. The first line that comes in is the task.
import Foundation
import RecipeHost

struct Wire: Codable {
    let dtype: String
    let shape: [Int]
    let data: Data  // little-endian; base64 in JSON

    init(_ tensor: Tensor) {
        shape = tensor.shape
        switch tensor {
        case .int32(let values, _): (dtype, data) = ("int32", values.withUnsafeBytes { Data($0) })
        case .float16(let values, _): (dtype, data) = ("float16", values.withUnsafeBytes { Data($0) })
        }
    }

    var tensor: Tensor {
        dtype == "int32" ? .int32(numbers(), shape: shape) : .float16(numbers(), shape: shape)
    }

    private func numbers<Number>() -> [Number] {
        Array(unsafeUninitializedCapacity: data.count / MemoryLayout<Number>.size) { buffer, count in
            count = data.copyBytes(to: buffer) / MemoryLayout<Number>.size
        }
    }
}

struct Task: Decodable {
    let bundle: String
    let prompts: [[Int]]
    let maxTokens: Int
    let drafts: Bool
}

struct Call: Encodable {
    let package: Int
    let state: Int
    let function: String
    let inputs: [String: Wire]
}

struct Told: Encodable {
    let answer: [Int]
    let end: String
}

func say(_ value: some Encodable) throws {
    FileHandle.standardOutput.write(try JSONEncoder().encode(value) + Data("\n".utf8))
}

func hear<Value: Decodable>(_: Value.Type) throws -> Value {
    guard let line = readLine() else { throw HostError("standard input ended") }
    return try JSONDecoder().decode(Value.self, from: Data(line.utf8))
}

final class State {
    let number: Int

    init(_ number: Int) {
        self.number = number
    }
}

final class Remote: Package {
    private let number: Int
    private var made = 0

    init(_ number: Int) {
        self.number = number
    }

    func makeState() -> AnyObject {
        made += 1
        return State(made)
    }

    func call(_ function: String, _ inputs: [String: Tensor], state: AnyObject) throws -> [String: Tensor] {
        guard let state = state as? State else { throw HostError("no state of this package") }
        try say(Call(package: number, state: state.number, function: function, inputs: inputs.mapValues(Wire.init)))
        return try hear([String: Wire].self).mapValues(\.tensor)
    }
}

do {
    let task = try hear(Task.self)
    let folder = URL(fileURLWithPath: task.bundle)
    let manifest = try Manifest.read(from: folder)
    let tables = try manifest.tables.map { ($0.input, try Table($0, in: folder)) }
    let chain = try Chain(
        manifest: manifest, packages: manifest.programs.indices.map { Remote($0) },
        tables: Dictionary(uniqueKeysWithValues: tables))
    let session = try Session(chain)
    var sampler = Sampler()
    for prompt in task.prompts {
        let found = try Answer(maxTokens: task.maxTokens, drafts: task.drafts).run(session, prompt: prompt, sampler: &sampler)
        try say(Told(answer: found.tokens, end: found.end == .stop ? "stop" : "length"))
    }
} catch {
    FileHandle.standardError.write(Data("\(error)\n".utf8))
    exit(2)
}
