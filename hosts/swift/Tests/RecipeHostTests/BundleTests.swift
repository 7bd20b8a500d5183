import XCTest

@testable import RecipeHost

final class BundleTests: XCTestCase {
    private func message(_ body: () throws -> Void) -> String {
        do { try body() } catch { return "\(error)" }
        return "nothing"
    }

    func testABundleThatThisHostDoesNotKnowIsRefused() throws {
        let fake = FakePackage([(67, nil)])
        XCTAssertEqual(message { _ = try fake.manifest { $0["format"] = 3 } },
            "manifest.json: format 3 is not 2: build the bundle again")
        XCTAssertEqual(message { _ = try fake.manifest { $0["host"] = "anemll" } },
            "manifest.json: the bundle is for the host anemll")
        XCTAssertEqual(message { _ = try fake.manifest { $0["carried"] = ["conv": ["role": "tail"]] } },
            "manifest.json: carried: this host does not know the role tail")
        XCTAssertEqual(message { _ = try fake.manifest { $0["carried"] = ["kv": ["role": "kv", "rollback": "none"]] } },
            "manifest.json: carried: this host does not know the rollback none of the role kv")
        XCTAssertEqual(message { _ = try fake.manifest { $0["vocab_size"] = 129 } },
            "manifest.json: logits of 1 x 128 do not hold 129 tokens")
        XCTAssertEqual(message { _ = try fake.manifest { $0["states"] = nil } }, "manifest.json: there is no states")
    }

    func testOnePackageHandsOnToTheNext() throws {
        final class Link: Package {
            var got: [String] = []
            let gives: String

            init(_ gives: String) {
                self.gives = gives
            }

            func makeState() -> AnyObject { self }

            func call(_ function: String, _ inputs: [String: Tensor], state: AnyObject) -> [String: Tensor] {
                XCTAssertTrue(state === self)
                got += inputs.keys.sorted()
                return [gives: .float16([Float16](repeating: 1, count: 128), shape: [1, 1, 128])]
            }
        }
        let manifest = try FakePackage([(67, nil)]).manifest { said in
            let ids: [String: Any] = ["dtype": "int32", "shape": [1, 1]], one: [String: Any] = ["dtype": "int32", "shape": [1]]
            let x: [String: Any] = ["dtype": "float16", "shape": [1, 1, 128]]
            func package(_ inputs: [String: Any], _ outputs: [String: Any]) -> [String: Any] {
                ["file": "p", "role": "layers", "functions": ["decode": ["query": 1, "inputs": inputs, "outputs": outputs]]]
            }
            said["packages"] = [
                package(["input_ids": ids, "position": one], ["hidden_4": x]),
                package(["hidden_4": x, "position": one], ["logits": x]),
            ]
        }
        let (first, second) = (Link("hidden_4"), Link("logits"))
        let session = try Session(Chain(manifest: manifest, packages: [first, second]))
        XCTAssertEqual(try session.feed([5, 6]).best, 0)
        XCTAssertEqual(first.got, ["input_ids", "position", "input_ids", "position"])
        XCTAssertEqual(second.got, ["hidden_4", "position", "hidden_4", "position"])
        XCTAssertEqual(message { _ = try Chain(manifest: manifest, packages: [first]) }, "fake has 2 packages, not 1")
    }

    func testRowsOfACallGoToTheirPositionsAndPaddingNowhere() throws {
        var cache = Tensor.zeros([2, 1, 4, 2])
        let new = Tensor.float16((1...12).map { Float16($0) }, shape: [2, 1, 3, 2])
        try cache.write(new, count: 2, at: 3)
        XCTAssertEqual(cache, .float16([3, 4, 0, 0, 0, 0, 1, 2, 9, 10, 0, 0, 0, 0, 7, 8], shape: [2, 1, 4, 2]))
        XCTAssertEqual(message { try cache.write(.zeros([2, 1, 3, 4]), count: 1, at: 0) },
            "rows of [2, 1, 3, 4] are none of a cache of [2, 1, 4, 2]")
    }

    func testATensorOfOnePositionIsGoneBackToWhereItWasKept() throws {
        var snapshots = Snapshots()
        for position in 1...6 {
            snapshots.note(position, ["x": .one(position)])
            if position != 5 { snapshots.keep() }
        }
        XCTAssertEqual([0, 1, 2, 3, 5, 9].map(snapshots.nearest), [0, 0, 2, 3, 4, 6])  // the first of too many is gone
        XCTAssertEqual(snapshots.goBack(4), ["x": .one(4)])
        XCTAssertEqual(snapshots.nearest(9), 4)
        XCTAssertEqual(snapshots.goBack(0), [:])
    }

    func testATableOfFourBitsGivesItsRowsTimesTheirScales() throws {
        let scales: [Float16] = [0.5, 2, 1, 4]
        let data = Data([0x21, 0xF8, 0x03, 0x70]) + scales.withUnsafeBytes { Data($0) }
        let table = try Table(
            .init(file: "t.bin", dtype: "int4", rows: 2, columns: 4, block: 2, offset: 4, input: "per_layer"), data)
        XCTAssertEqual(try table.rows([0, 1, 0]),
            .float16([0.5, 1, -16, -2, 3, 0, 0, 28, 0.5, 1, -16, -2], shape: [1, 3, 4]))
        XCTAssertEqual(message { _ = try table.rows([2]) }, "t.bin: has no row 2")
        let short = Manifest.Table(file: "t.bin", dtype: "float16", rows: 2, columns: 4, block: nil, offset: nil, input: "x")
        XCTAssertEqual(message { _ = try Table(short, Data(count: 15)) },
            "t.bin: 15 bytes are not the table that manifest.json describes")
    }

    func testTheSameSeedGivesTheSameTokensAndUnlikelyOnesAreLeftOut() throws {
        let choice = Choice.logits([0, 3, 1, 2.9, -4])
        func draw(_ sampler: Sampler) throws -> [Int] {
            var sampler = sampler
            return try (0..<200).map { _ in try sampler.pick(choice) }
        }
        XCTAssertEqual(Set(try draw(Sampler())), [1])
        XCTAssertEqual(try draw(Sampler(temperature: 1, seed: 5)), try draw(Sampler(temperature: 1, seed: 5)))
        XCTAssertNotEqual(try draw(Sampler(temperature: 1, seed: 5)), try draw(Sampler(temperature: 1, seed: 6)))
        XCTAssertEqual(Set(try draw(Sampler(temperature: 1, topP: 0.8))), [1, 3])
        XCTAssertEqual(Set(try draw(Sampler(temperature: 5, topK: 3))), [1, 2, 3])
        let share = Double(try draw(Sampler(temperature: 1, topK: 2)).filter { $0 == 1 }.count) / 200
        XCTAssertEqual(share, 1 / (1 + exp(-0.1)), accuracy: 0.1)
    }

    func testACharacterIsShownWhenItIsWhole() throws {
        struct Bytes: Tokenizer {
            func encode(_ text: String) -> [Int] { text.utf8.map(Int.init) }

            func decode(_ tokens: [Int]) -> String { String(decoding: tokens.map(UInt8.init), as: UTF8.self) }
        }
        var stream = TextStream(Bytes())
        XCTAssertEqual(try Bytes().encode("aé!").map { try stream.add($0) }, ["a", "", "é", "!"])
    }
}
