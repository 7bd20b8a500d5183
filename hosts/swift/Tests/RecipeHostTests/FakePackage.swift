import Foundation

@testable import RecipeHost

/// Attends over its caches and hashes what it sees: any other tokens give other logits. It has the caches of a package,
/// `(rows, window)`, and holds each call against the contract.
final class FakePackage: Package {
    static let vocabulary = 97

    final class State {
        var rows: [[Int?]]

        init(_ caches: [(rows: Int, window: Int?)]) {
            rows = caches.map { Array(repeating: nil, count: $0.rows) }
        }
    }

    let caches: [(rows: Int, window: Int?)]
    let context: Int
    let chunk: Int
    var calls: [String] = []
    var statesMade = 0
    var failsAt: Int?

    init(_ caches: [(rows: Int, window: Int?)], context: Int = 64, chunk: Int = 4) {
        (self.caches, self.context, self.chunk) = (caches, context, chunk)
    }

    func makeState() -> AnyObject {
        statesMade += 1
        return State(caches)
    }

    func call(_ function: String, _ inputs: [String: Tensor], state: AnyObject) throws -> [String: Tensor] {
        let state = state as! State
        let position = try inputs["position"]!.integers("position")[0]
        let count = try inputs["count"]?.integers("count")[0] ?? 1
        let tokens = try inputs["input_ids"]!.integers("input_ids")
        precondition(position + count <= context && tokens.dropFirst(count).allSatisfy { $0 == 0 })
        calls.append("\(function) \(position) \(count)")
        if calls.count - 1 == failsAt { throw HostError("interrupted") }
        var hash = 14_695_981_039_346_656_037 as UInt64
        for (index, cache) in caches.enumerated() {
            let last = position + count - 1
            for place in (cache.window.map { max(0, last - $0 + 1) } ?? 0)...last {
                let token = place < position ? state.rows[index][place % cache.rows] ?? -1 : tokens[place - position]
                hash = (hash ^ UInt64(bitPattern: Int64(token + 2))) &* 1_099_511_628_211
            }
        }
        for (index, cache) in caches.enumerated() {
            for offset in 0..<(cache.window == nil ? tokens.count : count) {
                state.rows[index][(position + offset) % cache.rows] = tokens[offset]
            }
        }
        var random = SplitMix64(state: hash)
        let logits = (0..<Self.vocabulary).map { _ in Float16(Double.random(in: 0..<8, using: &random)) }
        return ["logits": .float16(logits + Array(repeating: 1000, count: 128 - logits.count), shape: [1, 1, 128])]
    }

    /// What must follow a sequence: a new package sees it whole.
    func expected(_ text: [Int]) throws -> Int {
        let fresh = FakePackage(caches, context: context, chunk: text.count)
        let function = text.count == 1 ? "decode" : "prefill"
        var inputs: [String: Tensor] = ["input_ids": .tokens(text, filledTo: text.count), "position": .one(0)]
        inputs["count"] = .one(text.count)
        let found = try fresh.call(function, inputs, state: fresh.makeState())
        return Choice.logits(Array(try found["logits"]!.floats("logits").prefix(Self.vocabulary))).best
    }

    func session() throws -> Session {
        try Session(Chain(manifest: manifest(), packages: [self]))
    }

    func manifest(_ change: (inout [String: Any]) -> Void = { _ in }) throws -> Manifest {
        let one: [String: Any] = ["dtype": "int32", "shape": [1]]
        func function(_ query: Int) -> [String: Any] {
            var inputs: [String: Any] = ["input_ids": ["dtype": "int32", "shape": [1, query]], "position": one]
            if query > 1 { inputs["count"] = one }
            return ["query": query, "inputs": inputs, "outputs": ["logits": ["dtype": "float16", "shape": [1, 1, 128]]]]
        }
        var states: [String: Any] = [:]
        for (index, cache) in caches.enumerated() {
            states["kv_\(index)"] = ["kinds": ["kind_\(index)": ["rows": cache.rows, "window": cache.window as Any]]]
        }
        var said: [String: Any] = [
            "format": 2, "name": "fake", "context": context, "vocab_size": Self.vocabulary,
            "logits": ["pieces": 1, "columns": 128], "eos_token_ids": [0], "states": states, "later": true,
            "packages": [
                ["file": "model.mlpackage", "role": "all", "functions": ["decode": function(1), "prefill": function(chunk)]]
            ],
        ]
        change(&said)
        return try Manifest.decode(JSONSerialization.data(withJSONObject: said))
    }
}
