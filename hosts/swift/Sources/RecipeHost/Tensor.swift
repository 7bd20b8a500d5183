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

    /// Halves that are all zero.
    static func zeros(_ shape: [Int]) -> Tensor {
        .float16(Array(repeating: 0, count: shape.reduce(1, *)), shape: shape)
    }

    /// Puts the first `count` rows of `new` (layers, heads, tokens, size) into this cache (layers, heads, rows, size):
    /// that of position p into row p mod rows.
    mutating func write(_ new: Tensor, count: Int, at position: Int) throws {
        guard case .float16(let from, let given) = new, case .float16(var values, let shape) = self, shape.count == 4,
            given.count == 4, given[0] == shape[0], given[1] == shape[1], given[3] == shape[3], count <= given[2]
        else { throw HostError("rows of \(new.shape) are none of a cache of \(self.shape)") }
        self = .int32([], shape: [])  // the values are held once, and written in place
        let (rows, tokens, size) = (shape[2], given[2], shape[3])
        for head in 0..<shape[0] * shape[1] {
            for token in 0..<count {
                let (to, at) = ((head * rows + (position + token) % rows) * size, (head * tokens + token) * size)
                values.replaceSubrange(to..<to + size, with: from[at..<at + size])
            }
        }
        self = .float16(values, shape: shape)
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
