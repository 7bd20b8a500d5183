import XCTest

@testable import RecipeHost

final class SessionTests: XCTestCase {
    func testNewTokensAreFedInChunksAndASingleOneByDecode() throws {
        for (length, calls) in [
            (1, ["decode 0 1"]), (2, ["prefill 0 2"]), (5, ["prefill 0 4", "decode 4 1"]), (7, ["prefill 0 4", "prefill 4 3"]),
        ] {
            let package = FakePackage([(64 + 3, nil), (8, 8)])
            let text = Array(1...length)
            XCTAssertEqual(try package.session().feed(text).best, try package.expected(text))
            XCTAssertEqual(package.calls, calls)
        }
    }

    func testACommonBeginningIsNotFedAgain() throws {
        let package = FakePackage([(67, nil)])
        let session = try package.session()
        _ = try session.feed([1, 2, 3, 4, 5, 6])
        XCTAssertEqual(try session.feed([1, 2, 3, 4, 9]).best, try package.expected([1, 2, 3, 4, 9]))
        XCTAssertEqual(package.calls.last, "decode 4 1")
        XCTAssertEqual(try session.feed([1, 2]).best, try package.expected([1, 2]))
        XCTAssertEqual(package.calls.last, "decode 1 1")
        XCTAssertEqual(package.statesMade, 1)
    }

    func testARingGoesBackByWhatItHasToSpareAndBeyondThatAllIsFedAnew() throws {
        let package = FakePackage([(67, nil), (11, 8)])
        let session = try package.session()
        let text = Array(1...20)
        _ = try session.feed(text)
        let near = text.prefix(17) + [50]
        XCTAssertEqual(try session.feed(Array(near)).best, try package.expected(Array(near)))
        XCTAssertEqual(package.statesMade, 1)
        let far = text.prefix(15) + [50]  // the last written position counts, not the tokens that are held
        XCTAssertEqual(try session.feed(Array(far)).best, try package.expected(Array(far)))
        XCTAssertEqual(package.statesMade, 2)
    }

    func testAfterACallThatFailedTheNextOneStartsFromWhatIsCertain() throws {
        let package = FakePackage([(67, nil), (8, 8)])
        let session = try package.session()
        package.failsAt = 1
        XCTAssertThrowsError(try session.feed(Array(1...7)))
        XCTAssertEqual(try session.feed(Array(1...7)).best, try package.expected(Array(1...7)))
        XCTAssertEqual(package.statesMade, 2)  // the ring may be half written
    }

    func testWhatTheContextCannotHoldIsRefusedBeforeAnyCall() throws {
        let package = FakePackage([(11, nil)], context: 8)
        let session = try package.session()
        for wrong in [[], Array(1...9), [97], [-1]] {
            XCTAssertThrowsError(try session.feed(wrong))
        }
        XCTAssertEqual(package.calls, [])
        XCTAssertEqual(try session.feed(Array(1...8)).best, try package.expected(Array(1...8)))
    }

    func testAnAnswerEndsAtItsEndTokenItsLimitAndTheContextsEnd() throws {
        let package = FakePackage([(67, nil)], context: 12)
        var sampler = Sampler()
        let whole = try Answer(maxTokens: 100).run(package.session(), prompt: [1, 2, 3], sampler: &sampler)
        XCTAssertEqual(whole.tokens.count + 3, 13)  // the last one is chosen and needs no room
        XCTAssertEqual(whole.end, .length)
        XCTAssertEqual(try Answer(maxTokens: 2).run(package.session(), prompt: [1, 2, 3], sampler: &sampler).tokens,
            Array(whole.tokens.prefix(2)))
        let ending = try package.manifest { $0["eos_token_ids"] = [whole.tokens[3]] }
        let session = try Session(Chain(manifest: ending, packages: [package]))
        let stopped = try Answer(maxTokens: 100).run(session, prompt: [1, 2, 3], sampler: &sampler)
        XCTAssertEqual(stopped.tokens, Array(whole.tokens[..<whole.tokens.firstIndex(of: whole.tokens[3])!]))
        XCTAssertEqual(stopped.end, .stop)
    }

    func testADraftSeesWhatTransformersShowsIt() {
        XCTAssertEqual(Speculation.seen(window: nil, processed: 20, length: 18, fed: 5), 18)
        XCTAssertEqual(Speculation.seen(window: 8, processed: 20, length: 18, fed: 5), 20)
        XCTAssertEqual(Speculation.seen(window: 8, processed: 5, length: 4, fed: 5), 4)
    }
}
