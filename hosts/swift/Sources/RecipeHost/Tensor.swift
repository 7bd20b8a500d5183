/// Numbers in a shape, row after row without gaps.
public enum Tensor: Equatable, Sendable {
    case int32([Int32], shape: [Int])
    case float16([Float16], shape: [Int])

    public var shape: [Int] {
        switch self {
        case .int32(_, let shape), .float16(_, let shape): shape
        }
    }

    /// A vector of one whole number.
    static func one(_ value: Int) -> Tensor {
        .int32([Int32(value)], shape: [1])
    }

    /// A row of tokens, filled up to `size` with padding.
    static func tokens(_ tokens: [Int], filledTo size: Int) -> Tensor {
        let padding = Array(repeating: Int32(0), count: size - tokens.count)
        return .int32(tokens.map(Int32.init) + padding, shape: [1, size])
    }

    /// Its numbers as `Float`. Throws if they are whole.
    func floats(_ name: String) throws -> [Float] {
        guard case .float16(let values, _) = self else { throw HostError("\(name) is int32 and must be float16") }
        return values.map(Float.init)
    }

    /// Its numbers as `Int`. Throws if they are floats.
    func integers(_ name: String) throws -> [Int] {
        guard case .int32(let values, _) = self else { throw HostError("\(name) is float16 and must be int32") }
        return values.map(Int.init)
    }
}
