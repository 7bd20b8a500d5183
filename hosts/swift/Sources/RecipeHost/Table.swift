import Foundation

/// Rows that the host looks up by token and hands in as float16. The file is mapped: rows in use alone are read.
public final class Table {
    private let data: Data
    private let described: Manifest.Table
    private let rowBytes: Int

    public convenience init(_ described: Manifest.Table, in folder: URL) throws {
        let file = folder.appendingPathComponent(described.file)
        try self.init(described, Data(contentsOf: file, options: .alwaysMapped))
    }

    init(_ described: Manifest.Table, _ data: Data) throws {
        guard let bits = ["float16": 16, "int8": 8, "int4": 4][described.dtype] else {
            throw HostError("\(described.file): rows of \(described.dtype) are not known")
        }
        rowBytes = described.columns * bits / 8
        let isWhole = described.dtype != "float16"
        let scales = isWhole ? 2 * described.rows * (described.columns / max(described.block ?? 0, 1)) : 0
        guard isWhole == (described.block != nil), described.rows * rowBytes + scales == data.count,
            (described.offset ?? described.rows * rowBytes) == described.rows * rowBytes,
            described.columns % (described.block ?? 1) == 0
        else { throw HostError("\(described.file): \(data.count) bytes are not the table that manifest.json describes") }
        (self.data, self.described) = (data, described)
    }

    public var count: Int { described.rows }

    /// The rows of `tokens`, (1, tokens, columns).
    public func rows(_ tokens: [Int]) throws -> Tensor {
        var values: [Float16] = []
        values.reserveCapacity(tokens.count * described.columns)
        for token in tokens {
            guard (0..<described.rows).contains(token) else { throw HostError("\(described.file): has no row \(token)") }
            for column in 0..<described.columns { values.append(value(token, column)) }
        }
        return .float16(values, shape: [1, tokens.count, described.columns])
    }

    private func value(_ row: Int, _ column: Int) -> Float16 {
        let start = data.startIndex + row * rowBytes
        switch described.dtype {
        case "float16": return half(start + 2 * column)
        case "int8": return scaled(Int8(bitPattern: data[start + column]), row, column)
        default:  // the first of two lies in the lower half of their byte
            let byte = data[start + column / 2]
            let bits = column % 2 == 0 ? byte << 4 : byte & 0xF0
            return scaled(Int8(bitPattern: bits) >> 4, row, column)
        }
    }

    private func scaled(_ whole: Int8, _ row: Int, _ column: Int) -> Float16 {
        let block = described.block ?? described.columns
        let scale = half(data.startIndex + described.rows * rowBytes + 2 * (row * (described.columns / block) + column / block))
        return Float16(Float(whole) * Float(scale))
    }

    private func half(_ place: Int) -> Float16 {
        Float16(bitPattern: UInt16(data[place]) | UInt16(data[place + 1]) << 8)
    }
}
