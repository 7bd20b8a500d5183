import Foundation

/// Chooses a token: the best one, or by its probability.
///
/// Logits are divided by the temperature. Then the least set of most likely tokens is kept whose probabilities add up to
/// `topP`, of `topK` at most, and one of these is drawn. The same seed gives the same tokens.
public struct Sampler: Sendable {
    public var temperature: Float
    public var topP: Float
    public var topK: Int?
    private var generator: SplitMix64

    /// The best token each time, where `temperature` is 0.
    public init(temperature: Float = 0, topP: Float = 1, topK: Int? = nil, seed: UInt64 = 0) {
        (self.temperature, self.topP, self.topK, generator) = (temperature, topP, topK, SplitMix64(state: seed))
    }

    /// Throws where there is something to be sampled from what gives no logits, and for logits that are NaN.
    public mutating func pick(_ choice: Choice) throws -> Int {
        guard temperature > 0 else { return choice.best }
        guard case .logits(let logits) = choice else {
            throw HostError("the package returns the best token instead of logits, so nothing can be sampled")
        }
        guard let highest = logits.max(), !logits.contains(where: \.isNaN) else { throw HostError("the logits are NaN") }
        var shares = logits.enumerated().map { (token: $0, weight: exp(Double(($1 - highest) / temperature))) }
        shares.sort { ($0.weight, -$0.token) > ($1.weight, -$1.token) }
        if let topK { shares.removeSubrange(min(max(topK, 1), shares.count)...) }
        let bound = shares.reduce(0) { $0 + $1.weight } * Double(topP)
        var (kept, sum) = (0, 0.0)
        while kept < shares.count, kept == 0 || sum < bound {
            sum += shares[kept].weight
            kept += 1
        }
        var place = Double.random(in: 0..<1, using: &generator) * sum
        for share in shares.prefix(kept) {
            place -= share.weight
            if place < 0 { return share.token }
        }
        return shares[kept - 1].token
    }
}

/// Numbers that a seed decides (Steele, Lea and Flood, 2014).
struct SplitMix64: RandomNumberGenerator, Sendable {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
