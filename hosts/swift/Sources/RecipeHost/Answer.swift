/// The loop of an answer: tokens after a prompt, until one ends it.
public struct Answer {
    public enum End: Equatable, Sendable {
        /// By a token of the bundle's, which is not among the answer's.
        case stop
        /// At the limit, or at the end of the context.
        case length
    }

    public var maxTokens: Int
    public var drafts: Bool

    public init(maxTokens: Int, drafts: Bool = false) {
        (self.maxTokens, self.drafts) = (maxTokens, drafts)
    }

    /// Tells `onToken` each token as it is chosen; it says whether to go on.
    public func run(
        _ session: Session, prompt: [Int], sampler: inout Sampler, onToken: (Int) -> Bool = { _ in true }
    ) throws -> (tokens: [Int], end: End) {
        let ends = Set(session.chain.manifest.endTokens)
        var (answer, current) = ([Int](), sampler)
        defer { sampler = current }
        let speculation =
            try drafts && maxTokens > 0
            ? Speculation(session, prompt: prompt, maxTokens: maxTokens, pick: { try current.pick($0) }) : nil
        while answer.count < maxTokens, prompt.count + answer.count <= session.context {
            let tokens: [Int]
            if let speculation {
                guard let round = try speculation.next() else { break }
                tokens = round.tokens
            } else {
                tokens = [try current.pick(session.feed(prompt + answer))]
            }
            for token in tokens.prefix(maxTokens - answer.count) {
                if ends.contains(token) { return (answer, .stop) }
                answer.append(token)
                if !onToken(token) { return (answer, .length) }
            }
        }
        return (answer, .length)
    }
}
