/// What one round gave: the draft's guesses, how many of them the model would have chosen too, and the new tokens.
public struct Round: Equatable, Sendable {
    public let drafted: [Int]
    public let accepted: Int
    public let tokens: [Int]
}

/// Rounds of guesses by `draft`, verified by `score`: the text is the model's own (docs/bundle.md, "Drafts").
public final class Speculation {
    private let session: Session
    private let pick: (Choice) throws -> Int
    private let score: Int
    private let windows: [String: Int?]
    private var text: [Int]
    private var hidden: Tensor
    private var fed: Int
    private var processed: Int
    private let room: Int
    private var first: Int?

    /// Throws if the bundle has no draft. `pick` chooses a token of what a call says, in the text's order.
    public init(_ session: Session, prompt: [Int], maxTokens: Int, pick: @escaping (Choice) throws -> Int) throws {
        let chain = session.chain
        guard let draft = chain.described("draft"), let score = chain.described("score")?.query else {
            throw HostError("\(chain.manifest.name) has no draft")
        }
        (self.session, self.pick, self.score, text) = (session, pick, score, prompt)
        windows = draft.inputs.keys.reduce(into: [:]) { windows, input in
            guard input.hasPrefix("seen_") else { return }
            let kind = String(input.dropFirst("seen_".count))
            windows[kind] = .some(chain.manifest.kinds[kind]?.window)
        }
        room = min(prompt.count + maxTokens, session.context + 1)
        try session.resume(prompt)
        let skip = session.tokens.count
        guard let size = chain.described("prefill")?.query else { throw HostError("\(chain.manifest.name) has no prefill") }
        var found: [String: Tensor] = [:]
        for start in stride(from: skip, to: prompt.count, by: size) {
            found = try session.call("prefill", Array(prompt[start..<min(start + size, prompt.count)]), at: start)
        }
        (hidden, processed, fed) = (try Self.hidden(found, row: 0), prompt.count, prompt.count - skip)
        let token = try pick(session.choices(found)[0])
        text.append(token)
        first = token
        session.hold(text.dropLast())
    }

    /// The next round, nil where there is no room for one. The first drafts nothing.
    public func next() throws -> Round? {
        if let token = first {
            first = nil
            return Round(drafted: [], accepted: 0, tokens: [token])
        }
        guard text.count < room else { return nil }
        let drafted = try draft(atMost: min(score - 1, room - text.count - 1))
        let given = [text[text.count - 1]] + drafted
        let found = try session.call(drafted.isEmpty ? "decode" : "score", given, at: text.count - 1)
        (processed, fed) = (text.count + drafted.count, given.count)
        var picked: [Int] = []
        for (row, choice) in try session.choices(found).prefix(given.count).enumerated() {
            picked.append(try pick(choice))
            if row == drafted.count || picked[row] != drafted[row] { break }
        }
        hidden = try Self.hidden(found, row: picked.count - 1)
        text += picked
        session.hold(text.dropLast())  // the last one was picked and not fed yet
        return Round(drafted: drafted, accepted: picked.count - 1, tokens: picked)
    }

    private func draft(atMost most: Int) throws -> [Int] {
        var inputs: [String: Tensor] = [:]
        for (kind, window) in windows {
            inputs["seen_\(kind)"] = .one(Self.seen(window: window, processed: processed, length: text.count, fed: fed))
        }
        var (drafted, last): ([Int], Tensor) = ([], hidden)
        while drafted.count < most {
            inputs["last_hidden"] = last
            let found = try session.call("draft", [drafted.last ?? text[text.count - 1]], at: text.count - 1, inputs)
            last = try Self.hidden(found, row: 0)
            drafted += try session.choices(found).map(\.best)
        }
        return Array(drafted.prefix(most))
    }

    /// How many positions of a kind's keys and values a draft sees, from 0 on: what transformers shows it.
    static func seen(window: Int?, processed: Int, length: Int, fed: Int) -> Int {
        let held = window.map { min(processed, $0 - 1 + fed) } ?? processed
        return processed - held + min(held, length)
    }

    /// A row of `hidden` (1, N, C), as `draft` takes it, (1, 1, C).
    private static func hidden(_ outputs: [String: Tensor], row: Int) throws -> Tensor {
        guard case .float16(let values, let shape)? = outputs["hidden"], shape.count == 3, row < shape[1] else {
            throw HostError("a call for a draft gives no hidden state")
        }
        return .float16(Array(values[row * shape[2]..<(row + 1) * shape[2]]), shape: [1, 1, shape[2]])
    }
}
