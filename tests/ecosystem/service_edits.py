"""What the service of `fixtures/ecosystem/service` is asked, and edits of its sources that show in the answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from re import escape

from tests.ecosystem.load import Probe, Reply

BIN = "src/main.rs"
DISCOUNT, EMAIL, ORDER, PRODUCT, RECEIPT, DOMAIN = (
    f"crates/domain/src/{name}.rs" for name in ("discount", "email", "order", "product", "receipt", "lib")
)
MEMORY, STATS = (f"crates/storage/src/{name}.rs" for name in ("memory", "stats"))
JOBS = "crates/jobs/src/lib.rs"
ERROR, EXTRACT, LIVE, MIDDLEWARE, ORDERS, PAGES = (
    f"crates/web/src/{name}.rs" for name in ("error", "extract", "live", "middleware", "orders", "pages")
)

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"

Change = tuple[str, str, str]
"""A file, a text that is there exactly once, and what takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Changes that are saved together, and how they show: name of a probe → pattern of its answers from then on."""

    changes: tuple[Change, ...]
    shows: Mapping[str, str]


_PAUSE = "    tokio::task::yield_now().await;\n"


def _edit(*changes: Change, **shows: str) -> Edit:
    return Edit(changes=changes, shows=shows)


def _products(*products: str) -> str:
    """Labels and tax classes, in turn."""
    rows = [f'{{"label":"{label}","tax":"{tax}"}}' for label, tax in zip(products[::2], products[1::2], strict=True)]
    return escape(f"200 [{','.join(rows)}]")


def _price(offer: str, total: str, more: str = "") -> str:
    return escape(f'200 {{{more}"offer":"{offer}","product":"Green tea","total":"{total}"}}')


def _error(status: int, error: str, key: str = "error") -> str:
    return escape(f'{status} {{"{key}":"{error}"}}')


def _order(status: int, state: str, offer: str = "plain") -> str:
    quote = escape(f'"sku":"TEA","quantity":3,"quote":{{"total":"13.50","by":"{offer}"}},"email":"ada@example.org"')
    return f'{status} {{"id":"{_UUID}","number":\\d+,{quote},"status":"{state}"}}'


def _receipt(head: str, row: str, end: str) -> str:
    return escape(f"200 {head} of 2024-02-29\n{row}\n{end}@example.org")


def _shop(reply: Reply) -> str:
    return reply.headers["x-shop"]


def probes() -> dict[str, Probe]:
    """What is asked in turn, with the answers that the sources give before any edit."""
    return {
        "order": Probe(
            path="/orders",
            body={"sku": "TEA", "quantity": 3, "email": "ada@example.org"},
            versions=[_order(201, "accepted")],
        ),
        "order_shown": Probe(path="/orders/{id}", versions=[_order(200, "accepted")]),
        "receipt": Probe(
            path="/orders/{id}/receipt",
            versions=[_receipt("Receipt", "3 x Green tea (TEA)..........13.50", "Thank you\nfor a***")],
        ),
        "no_email": Probe(
            path="/orders",
            body={"sku": "CUP", "quantity": 1, "email": " ada@home"},
            versions=[_error(422, r"\" ada@home\" is not an e-mail address")],
        ),
        "too_many": Probe(
            path="/orders",
            body={"sku": "CUP", "quantity": 1000, "email": "ada@example.org"},
            versions=[_error(422, "cannot sell 1000 at once")],
        ),
        "products": Probe(
            path="/products",
            headers={"accept-encoding": "gzip"},
            versions=[
                _products("Cup (CUP)", "reduced", "Iron pot (POT)", "standard", "Green tea (TEA)", "reduced"),
            ],
        ),
        "price": Probe(path="/products/tea/price?quantity=12", versions=[_price("bulk", "48.60")]),
        "no_product": Probe(path="/products/nil/price", versions=[_error(404, "there is no product nil")]),
        "welcome": Probe(path="/", versions=["200 Welcome to the shop"]),
        "health": Probe(path="/health", versions=[escape('200 {"since":"morning","status":"ok"}')]),
        "shop": Probe(path="/health", show=_shop, versions=["corner"]),
        "report": Probe(path="/report", lags=True, versions=[r"200 \d+ report: (quiet|busy)"]),
        "whoami": Probe(path="/whoami", headers={"authorization": "Basic Ym9iOng="}, versions=["200 you are bob"]),
        "digest": Probe(path="/digest", body=" ABC ", versions=["200 b5d4045c"]),
        "relay": Probe(path="/relay", versions=['200 relayed "ok"']),
        "slow": Probe(path="/slow", by_line=True, versions=[r"word-\d"]),
    }


def streams() -> dict[str, Probe]:
    """The endless ones."""
    return {
        "events": Probe(path="/events", lags=True, versions=[r"data: tick \d+"]),
        "chat": Probe(path="/chat", versions=["hello "]),
    }


EDITS = (
    # The binary's own crate.
    _edit((BIN, '"Welcome to the shop"', '"Welcome"'), welcome="200 Welcome"),
    _edit(
        (BIN, "    greeting()\n", '    concat!("Dear customer: ", "welcome")\n'), welcome="200 Dear customer: welcome"
    ),
    # Handlers: bodies, of async functions too, strings, helpers that are new.
    _edit((PAGES, '"morning"', '"noon"'), health=escape('200 {"since":"noon","status":"ok"}')),
    _edit((PAGES, '"relayed {}"', '"passed on {}"'), relay='200 passed on "ok"'),
    _edit((PAGES, "take(4)", "take(5)"), digest="200 b5d4045c3f"),
    _edit((PAGES, "text.trim().to_owned()", "text.trim().to_lowercase()"), digest="200 ba7816bf8f"),
    _edit(
        (PAGES, '"offer": quote.by }', '"offer": quote.by, "currency": currency() }'),
        (PAGES, "pub async fn report", 'fn currency() -> &\'static str {\n    "EUR"\n}\n\npub async fn report'),
        price=_price("bulk", "48.60", '"currency":"EUR",'),
    ),
    _edit((PAGES, '"{} {}", report.round', '"No. {} {}", report.round'), report=r"200 No\. \d+ report: (quiet|busy)"),
    _edit((EXTRACT, '"you are {}"', '"hello {}"'), whoami="200 hello bob"),
    _edit((EXTRACT, ".0.to_owned()", ".0.to_uppercase()"), whoami="200 hello BOB"),
    _edit((MIDDLEWARE, '"corner"', '"village"'), shop="village"),
    _edit(
        (MIDDLEWARE, "signature());", "moved(signature()));"),
        (
            MIDDLEWARE,
            "fn signature",
            "fn moved(_: HeaderValue) -> HeaderValue {\n"
            '    HeaderValue::from_str(&["town", "hall"].join("-")).unwrap()\n}\n\nfn signature',
        ),
        shop="town-hall",
    ),
    _edit(
        (ERROR, '"error": self', '"problem": self'),
        no_product=_error(404, "there is no product nil", "problem"),
        no_email=_error(422, r"\" ada@home\" is not an e-mail address", "problem"),
        too_many=_error(422, "cannot sell 1000 at once", "problem"),
    ),
    _edit(
        (ERROR, "StatusCode::NOT_FOUND", "StatusCode::GONE"),
        no_product=_error(410, "there is no product nil", "problem"),
    ),
    _edit((ORDERS, "StatusCode::CREATED, ", "StatusCode::ACCEPTED, "), order=_order(202, "accepted")),
    _edit(
        (ORDERS, "    Ok(Json(order))", '    Ok(Json(Order { status: "shown".into(), ..order }))'),
        order_shown=_order(200, "shown"),
    ),
    _edit(
        (ORDERS, '"{}for {}"', '"{}to {}"'),
        receipt=_receipt("Receipt", "3 x Green tea (TEA)..........13.50", "Thank you\nto a***"),
    ),
    # What is never over: an event stream, a web socket, a body that is sent word by word, a background task.
    _edit((LIVE, '"tick {number}"', '"tock {number}"'), events=r"data: tock \d+"),
    _edit(
        (LIVE, "data(tick(number))", "data(loud(tick(number)))"),
        (LIVE, "fn tick", "fn loud(text: String) -> String {\n    text.to_uppercase()\n}\n\nfn tick"),
        events=r"data: TOCK \d+",
    ),
    _edit((LIVE, '"{count}: {text}"', '"{count}: <{text}>"'), chat="<hello >"),
    _edit((LIVE, "reply(&text, count)", "reply(text.trim(), count)"), chat="<hello>"),
    _edit((LIVE, '"word-{number}\\n"', '"word {number}\\n"'), slow=r"word \d"),
    _edit((LIVE, "word(number)))", "word(number).to_uppercase()))"), slow=r"WORD \d"),
    _edit((JOBS, '"busy"', '"bustling"'), report=r"200 No\. \d+ report: (quiet|bustling)"),
    _edit(
        (JOBS, "let mood = mood(summary.orders);", "let mood = emphasis(mood(summary.orders));"),
        (JOBS, "fn mood", 'fn emphasis(text: &str) -> String {\n    format!("{text}!")\n}\n\nfn mood'),
        report=r"200 No\. \d+ report: (quiet|bustling)!",
    ),
    _edit(
        (JOBS, "text_of(&summary));", "text_of(&summary).to_uppercase());"),
        report=r"200 No\. \d+ REPORT: (QUIET|BUSTLING)!",
    ),
    _edit(
        (JOBS, '"report: {mood}"', '"report: {mood} {:?}", summary.favourite.as_ref().map(|sku| &sku.0)'),
        report=r'200 No\. \d+ REPORT: BUSTLING! SOME\("TEA"\)',
    ),
    # Storage: trait methods that are async and traced, a lock's content, a sort order.
    _edit(
        (STATS, "Some(sku.clone())", 'Some(Sku(format!("{sku} of course")))'),
        report=r'200 No\. \d+ REPORT: BUSTLING! SOME\("TEA OF COURSE"\)',
    ),
    _edit(
        (MEMORY, "a.sku.cmp(&b.sku)", "b.sku.cmp(&a.sku)"),
        products=_products("Green tea (TEA)", "reduced", "Iron pot (POT)", "standard", "Cup (CUP)", "reduced"),
    ),
    _edit(
        (MEMORY, "Sku(sku.0.to_uppercase())", 'Sku(sku.0.to_uppercase().replace("NIL", "TEA"))'),
        no_product=_price("plain", "4.50", '"currency":"EUR",'),
    ),
    _edit(
        (
            MEMORY,
            "        orders.insert(id, order.clone());",
            '        tracing::debug!("kept");\n        orders.insert(id, order.clone());',
        ),
        order=_order(202, "accepted"),
    ),
    # The domain: everybody's dependency.
    _edit(
        (PRODUCT, '"{} ({})"', '"{} [{}]"'),
        products=_products("Green tea [TEA]", "reduced", "Iron pot [POT]", "standard", "Cup [CUP]", "reduced"),
        receipt=_receipt("Receipt", "3 x Green tea [TEA]..........13.50", "Thank you\nto a***"),
    ),
    _edit(
        (PRODUCT, "Decimal::TEN", "Decimal::ONE_HUNDRED"),
        products=_products("Green tea [TEA]", "reduced", "Iron pot [POT]", "reduced", "Cup [CUP]", "reduced"),
    ),
    _edit((DISCOUNT, "percent: 10", "percent: 20"), price=_price("bulk", "43.20", '"currency":"EUR",')),
    _edit((DISCOUNT, '"bulk"', '"many"'), price=_price("many", "43.20", '"currency":"EUR",')),
    _edit(
        (DISCOUNT, "percent: 20 })]", "percent: 20 }), Box::new(Fan)]"),
        (
            DISCOUNT,
            "#[derive",
            "struct Fan;\n\nimpl Discount for Fan {\n"
            '    fn name(&self) -> &\'static str {\n        "fan"\n    }\n\n'
            "    fn apply(&self, product: &Product, quantity: u32) -> Decimal {\n"
            "        Plain.apply(product, quantity) - Decimal::from(quantity / 10 * 20)\n    }\n}\n\n#[derive",
        ),
        price=_price("fan", "34.00", '"currency":"EUR",'),
    ),
    _edit(
        (DISCOUNT, "found.min_by_key", "found.skip(1).min_by_key"),
        order=_order(202, "accepted", offer="many"),
        no_product=_price("many", "4.50", '"currency":"EUR",'),
    ),
    _edit(
        (DISCOUNT, "found.skip(1).min_by_key", "found.min_by_key"),
        order=_order(202, "accepted"),
        no_product=_price("plain", "4.50", '"currency":"EUR",'),
    ),
    _edit(
        (ORDER, "cannot sell {0} at once", "nobody sells {0} at once"),
        too_many=_error(422, "nobody sells 1000 at once", "problem"),
    ),
    _edit((ORDER, '"accepted"', '"confirmed"'), order=_order(202, "confirmed")),
    _edit(
        (ORDER, "Email::parse(&request.email)", "Email::parse(tidy(&request.email))"),
        (ORDER, "fn limit", "fn tidy(text: &str) -> &str {\n    text.trim()\n}\n\nfn limit"),
        no_email=_error(422, r"\"ada@home\" is not an e-mail address", "problem"),
    ),
    _edit(
        (EMAIL, '"{}***@{host}"', '"{}...@{host}"'),
        receipt=_receipt("Receipt", "3 x Green tea [TEA]..........13.50", "Thank you\nto a..."),
    ),
    _edit(
        (RECEIPT, '"Receipt of', '"Invoice of'),
        receipt=_receipt("Invoice", "3 x Green tea [TEA]..........13.50", "Thank you\nto a..."),
    ),
    _edit(
        (RECEIPT, "{:.<24}{:.>10}", "{:-<24}{:->10}"),
        receipt=_receipt("Invoice", "3 x Green tea [TEA]----------13.50", "Thank you\nto a..."),
    ),
    _edit(
        (RECEIPT, '"{} x {}"', '"{} * {}"'),
        receipt=_receipt("Invoice", "3 * Green tea [TEA]----------13.50", "Thank you\nto a..."),
    ),
    _edit(
        (
            RECEIPT,
            "    fn right(&self) -> String;\n}",
            '    fn right(&self) -> String;\n    fn end(&self) -> &str {\n        " EUR"\n    }\n}',
        ),
        (RECEIPT, '{:->10}", line.left(), line.right()', '{:->10}{}", line.left(), line.right(), line.end()'),
        receipt=_receipt("Invoice", "3 * Green tea [TEA]----------13.50 EUR", "Thank you\nto a..."),
    ),
    # Several crates at once, a new file, a new static, and what was there before.
    _edit(
        (
            "crates/domain/src/tax.rs",
            "",
            "/// What the tax office gets of a price.\npub fn share(cents: u64) -> u64 {\n    cents / 5\n}\n",
        ),
        (DOMAIN, "mod receipt;\n", "mod receipt;\npub mod tax;\n"),
        (PAGES, '"since": "noon" }', '"since": "noon", "tax": domain::tax::share(100) }'),
        health=escape('200 {"since":"noon","status":"ok","tax":20}'),
    ),
    _edit(
        ("crates/domain/src/tax.rs", "cents / 5", "cents / 4"),
        health=escape('200 {"since":"noon","status":"ok","tax":25}'),
    ),
    _edit(
        (PAGES, '"tax": domain', '"asked": asked(), "tax": domain'),
        (
            PAGES,
            "#[derive(Serialize)]",
            "fn asked() -> u64 {\n"
            "    static ASKED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);\n"
            "    ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed)\n}\n\n#[derive(Serialize)]",
        ),
        health=r'200 \{"asked":[1-9]\d{3},"since":"noon","status":"ok","tax":25\}',
    ),
    _edit(
        (PAGES, '"since": "noon"', '"since": "dawn"'),
        health=r'200 \{"asked":[1-9]\d{3},"since":"dawn","status":"ok","tax":25\}',
    ),
    _edit(
        (PRODUCT, '"{} [{}]"', '"{} ({})"'),
        (ORDERS, '"{}to {}"', '"{}for {}"'),
        products=_products("Green tea (TEA)", "reduced", "Iron pot (POT)", "reduced", "Cup (CUP)", "reduced"),
        receipt=_receipt("Invoice", "3 * Green tea (TEA)----------13.50 EUR", "Thank you\nfor a..."),
    ),
    _edit((BIN, 'concat!("Dear customer: ", "welcome")', "greeting()"), welcome="200 Welcome"),
    # Handlers and middleware whose futures have another state, or give something else: the router was made before.
    _edit(
        (
            PAGES,
            "report(State(app): State<App>) -> String {\n",
            f"report(State(app): State<App>) -> String {{\n{_PAUSE}",
        ),
        (PAGES, '"No. {} {}", report.round', '"# {} {}", report.round'),
        report=r"200 # \d+ REPORT: BUSTLING! SOME.*",
    ),
    _edit(
        (PAGES, '"# {} {}", report.round', '"## {} {}", report.round'), report=r"200 ## \d+ REPORT: BUSTLING! SOME.*"
    ),
    _edit(
        (PAGES, "digest(body: String) -> String {\n", f"digest(body: String) -> Result<String, ApiError> {{\n{_PAUSE}"),
        (
            PAGES,
            'found.iter().take(5).map(|byte| format!("{byte:02x}")).collect()',
            'Ok(found.iter().take(6).map(|byte| format!("{byte:02x}")).collect())',
        ),
        digest="200 ba7816bf8f01",
    ),
    _edit(
        (MIDDLEWARE, "    let mut response", f"{_PAUSE}    let mut response"),
        (MIDDLEWARE, '["town", "hall"]', '["old", "town"]'),
        shop="old-town",
    ),
    _edit((MIDDLEWARE, '["old", "town"]', '["new", "town"]'), shop="new-town"),
)
