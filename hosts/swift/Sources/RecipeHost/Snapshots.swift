/// What a chain carries, at those positions of a sequence that a session may go back to.
///
/// A call gives new tensors, so that to keep the old ones takes no copy.
struct Snapshots {
    private static let most = 4  // each takes as much memory as a session's own

    private var now: (position: Int, carried: [String: Tensor]) = (0, [:])
    private var kept: [(position: Int, carried: [String: Tensor])] = []

    /// What is carried now is that of so many tokens.
    mutating func note(_ position: Int, _ carried: [String: Tensor]) {
        now = (position, carried)
    }

    /// Keeps what was noted last, and forgets the oldest of too many.
    mutating func keep() {
        kept.removeAll { $0.position == now.position }
        kept.append(now)
        kept.removeFirst(max(kept.count - Self.most, 0))
    }

    /// The last position up to this one that can be gone back to.
    func nearest(_ position: Int) -> Int {
        ([0, now.position] + kept.map(\.position)).filter { $0 <= position }.max() ?? 0
    }

    /// What was carried at a position that `nearest` gave; what was kept beyond it is of another text.
    mutating func goBack(_ position: Int) -> [String: Tensor] {
        if position != now.position { now = (position, kept.first { $0.position == position }?.carried ?? [:]) }
        kept.removeAll { $0.position > position }
        return now.carried
    }
}
