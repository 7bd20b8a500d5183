import Foundation

/// Text to tokens and back. This package has none of its own: swift-transformers reads tokenizer.json (README.md).
public protocol Tokenizer {
    func encode(_ text: String) throws -> [Int]

    /// The text of tokens, special ones left out.
    func decode(_ tokens: [Int]) throws -> String
}

/// The text of an answer while it comes: a token may hold a part of a character, which is shown when it is whole.
public struct TextStream {
    private let tokenizer: any Tokenizer
    private var tokens: [Int] = []
    private var shown = ""

    public init(_ tokenizer: any Tokenizer) {
        self.tokenizer = tokenizer
    }

    /// What the next token adds, empty while a character is not whole.
    public mutating func add(_ token: Int) throws -> String {
        tokens.append(token)
        let text = try tokenizer.decode(tokens)
        guard text.hasPrefix(shown), !text.hasSuffix("\u{FFFD}") else { return "" }
        defer { shown = text }
        return String(text.dropFirst(shown.count))
    }
}
