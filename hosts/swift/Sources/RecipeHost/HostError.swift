/// What is wrong with a bundle, or with how it was asked; one sentence.
public struct HostError: Error, CustomStringConvertible, Equatable {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
