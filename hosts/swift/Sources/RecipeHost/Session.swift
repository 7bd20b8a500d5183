/// What a call says of the token that follows: its logits, or the best token where the package chooses it.
public enum Choice: Sendable {
    case logits([Float])
    case token(Int)

    /// The best token; of equal ones, the lowest.
    public var best: Int {
        switch self {
        case .token(let token): return token
        case .logits(let logits):
            var best = 0
            for (token, logit) in logits.enumerated() where logit > logits[best] { best = token }
            return best
        }
    }
}

/// One sequence in the states of a bundle, and the calls that lengthen it. It feeds only what is new.
public final class Session {
    public let chain: Chain
    /// The tokens that the states hold.
    public private(set) var tokens: [Int] = []
    private var written = 0  // beyond the last position that any call wrote to, even one that failed
    private let rollback: Int
    private let chunk: Int
    private var snapshots = Snapshots()

    public init(_ chain: Chain) throws {
        guard chain.described("decode") != nil else { throw HostError("\(chain.manifest.name) has no function decode") }
        self.chain = chain
        chunk = chain.described("prefill")?.query ?? 1
        // a full cache has a row for every position; a ring can go back by what it has beyond its window
        rollback = chain.manifest.kinds.values.compactMap { kind in kind.window.map { kind.rows - $0 } }.min()
            ?? chain.manifest.context
    }

    public var context: Int { chain.manifest.context }

    /// What follows the sequence `text`. What the states hold of it is not fed again.
    public func feed(_ text: [Int]) throws -> Choice {
        try resume(text)
        let isPrompt = text.count - tokens.count > 1
        while true {
            // what the same prompt goes back to, and one that ends otherwise
            if isPrompt && tokens.count + chunk >= text.count { snapshots.keep() }
            let part = Array(text[tokens.count..<min(tokens.count + chunk, text.count)])
            let found = try call(part.count == 1 ? "decode" : "prefill", part, at: tokens.count)
            snapshots.note(tokens.count + part.count, chain.carried)
            tokens += part
            if tokens.count == text.count {
                if isPrompt { snapshots.keep() }
                return try choices(found)[0]
            }
        }
    }

    /// Keeps what the states and `text` begin with in common, or as many tokens fewer as what is carried was kept of: the
    /// last one is always fed.
    ///
    /// A ring's rows beyond it hold what was written last, so it is the last written position that counts.
    func resume(_ text: [Int]) throws {
        guard !text.isEmpty, text.count <= context else {
            throw HostError("\(text.count) tokens were given; a call takes 1 to \(context)")
        }
        guard let wrong = text.first(where: { !(0..<chain.manifest.vocabSize).contains($0) }) else {
            let shared = zip(tokens, text).prefix { $0 == $1 }.count
            var kept = min(shared, text.count - 1)
            if chain.carries { kept = snapshots.nearest(kept) }
            if written - kept > rollback {
                tokens = []
                written = 0
                chain.reset()
                snapshots = Snapshots()
            } else {
                tokens.removeSubrange(kept...)
                if chain.carries { chain.carried = snapshots.goBack(kept) }
            }
            return
        }
        throw HostError("token \(wrong) is none of \(chain.manifest.vocabSize)")
    }

    /// Calls a function with `part` at `position`; the rest of its tokens is padding.
    func call(_ function: String, _ part: [Int], at position: Int, _ more: [String: Tensor] = [:]) throws -> [String: Tensor] {
        guard let query = chain.described(function)?.query else {
            throw HostError("\(chain.manifest.name) has no function \(function)")
        }
        var inputs = more
        inputs["input_ids"] = .tokens(part, filledTo: query)
        inputs["position"] = .one(position)
        if chain.inputs(function).contains("count") { inputs["count"] = .one(part.count) }
        if function != "draft" { written = max(written, position + part.count) }
        return try chain.call(function, tokens: part + Array(repeating: 0, count: query - part.count), inputs)
    }

    /// The states hold these tokens: rounds with a draft have fed them.
    func hold(_ text: ArraySlice<Int>) {
        tokens = Array(text)
    }

    /// What a call says, a row for each token that it says it of.
    func choices(_ outputs: [String: Tensor]) throws -> [Choice] {
        if let ids = outputs["ids"] {
            let found = try ids.integers("ids")
            guard found.allSatisfy({ $0 < chain.manifest.vocabSize }) else { throw HostError("the logits are NaN") }
            return found.map { .token($0) }
        }
        guard let logits = outputs["logits"] else { throw HostError("\(chain.manifest.name) gives no logits") }
        let values = try logits.floats("logits")
        let width = chain.manifest.logits.pieces * chain.manifest.logits.columns
        guard !values.isEmpty, values.count % width == 0 else {
            throw HostError("logits are \(logits.shape), which is not rows of \(width)")
        }
        return stride(from: 0, to: values.count, by: width).map { start in
            .logits(Array(values[start..<start + chain.manifest.vocabSize]))  // the rest is padding
        }
    }
}
