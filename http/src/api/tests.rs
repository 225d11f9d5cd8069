//! The API on top of a node that sends what the tests want.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, BodyDataStream, to_bytes};
use axum::http::{Request, header};
use axum::response::Response;
use enjambre_control::{Command, Event, Events, Execute, Failure, Input, LogTail};
use enjambre_core::protocol::error::ErrorCode;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tower_service::Service;

use super::*;

/// Watches forward the events of a channel. Other commands have this result.
struct Node {
    events: broadcast::Sender<Event>,
    result: Result<(), Failure>,
}

impl Default for Node {
    fn default() -> Self {
        Self { events: broadcast::Sender::new(1000), result: Err(Failure::failed("not implemented")) }
    }
}

#[async_trait]
impl Execute for Node {
    async fn execute(&self, command: Command, _input: Input, events: Events) -> Result<(), Failure> {
        if command == Command::Watch {
            let mut receiver = self.events.subscribe();
            while let Ok(event) = receiver.recv().await {
                events.send(event).await;
            }
        }
        if let Command::SetLimits(limits) = command {
            events.send(Event::Limits(limits)).await;
            return Ok(());
        }
        self.result.clone()
    }
}

async fn send(router: &Router, request: Request<Body>) -> Response {
    router.clone().call(request).await.unwrap()
}

async fn get(router: &Router, path: &str) -> Response {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

async fn body(response: Response) -> Value {
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn apis() -> [Router; 2] {
    let node: Arc<dyn Execute> = Arc::new(Node::default());
    [peer(Arc::clone(&node)), tracker(node)]
}

/// The names of the schemas that a document refers to.
fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| references(value, into)),
        Value::Object(fields) => {
            for (key, value) in fields {
                references(value, into);
                into.extend(value.as_str().filter(|_| key == "$ref").map(str::to_owned));
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn document_describes_routes_that_exist() {
    for api in apis() {
        let document = body(get(&api, "/api/openapi.json").await).await;
        assert_eq!(document["openapi"], "3.1.0");
        let mut operations = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                assert!(operations.insert(operation["operationId"].to_string()), "{operation}");
                let uri = path.replace(['{', '}'], "");
                let request = Request::builder().method(method.to_uppercase().as_str()).uri(uri);
                let response = send(&api, request.body(Body::empty()).unwrap()).await;
                let is_problem = response.headers().get(header::CONTENT_TYPE)
                    == Some(&HeaderValue::from_static("application/problem+json"));
                // A request that no route accepts has no body.
                assert!(is_problem || response.status().is_success(), "{method} {path}: {response:?}");
            }
        }
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let pointers = found.iter().map(|path| path.trim_start_matches('#'));
        let missing: Vec<_> = pointers.filter(|path| document.pointer(path).is_none()).collect();
        assert!(missing.is_empty() && found.len() > 10, "{missing:?}");
        let page = to_bytes(get(&api, "/api/").await.into_body(), usize::MAX).await.unwrap();
        let page = String::from_utf8(page.to_vec()).unwrap();
        let links = page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap());
        links.for_each(|name| assert!(page.contains(&format!("id=\"{name}\"")), "{name}"));
    }
}

#[tokio::test]
async fn failure_is_problem_details() {
    for (failure, status, code) in [
        (Failure::usage("u"), 400, None),
        (Failure::not_found("n"), 404, None),
        (Failure::unreachable("r"), 502, None),
        (Failure::failed("f"), 500, None),
        (Failure { code: Some(ErrorCode::Full), ..Failure::failed("full") }, 507, Some("full")),
        (Failure { code: Some(ErrorCode::Busy), ..Failure::failed("busy") }, 503, Some("busy")),
        (Failure { code: Some(ErrorCode::Conflict), ..Failure::failed("c") }, 409, Some("conflict")),
        (Failure { code: Some(ErrorCode::Unsupported), ..Failure::usage("s") }, 409, Some("unsupported")),
        (Failure { code: Some(ErrorCode::Ambiguous), ..Failure::usage("a") }, 300, Some("ambiguous")),
    ] {
        let message = failure.message.clone();
        let api = peer(Arc::new(Node { result: Err(failure), ..Node::default() }));
        let response = get(&api, "/api/v1/files/x").await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let problem = body(response).await;
        assert_eq!(
            (problem["status"].as_u64(), problem["detail"].as_str()),
            (Some(status.into()), Some(&*message))
        );
        assert_eq!(problem.get("code").and_then(Value::as_str), code);
    }
}

#[tokio::test]
async fn change_requires_valid_json() {
    let [api, _] = apis();
    let put = async |kind: &str, text: String| {
        let request = Request::put("/api/v1/limits").header(header::CONTENT_TYPE, kind);
        let response = send(&api, request.body(Body::from(text)).unwrap()).await;
        (response.status().as_u16(), body(response).await)
    };
    let limits = json!({ "upload_rate": 5, "download_rate": null });
    assert_eq!(put("application/json", limits.to_string()).await, (200, limits.clone()));
    for (kind, text, status) in [
        // What a form of another site can send.
        ("text/plain", limits.to_string(), 415),
        ("application/x-www-form-urlencoded", limits.to_string(), 415),
        ("application/json", "{".to_owned(), 400),
        ("application/json", "[null, null]".to_owned(), 400),
        ("application/json", json!({ "upload_rate": 0, "download_rate": null }).to_string(), 400),
        ("application/json", json!({ "upload_rate": 5, "download_rate": null, "x": 1 }).to_string(), 400),
        ("application/json", " ".repeat(MAX_BODY + 1), 413),
    ] {
        let (found, problem) = put(kind, text).await;
        assert_eq!((found, problem["status"].as_u64()), (status, Some(status.into())), "{problem}");
    }
    for path in
        ["/api/v1/files?limit=0", "/api/v1/files?limit=1001", "/api/v1/files?x=1", "/api/v1/files/%ff"]
    {
        assert_eq!(get(&api, path).await.status().as_u16(), 400, "{path}");
    }
}

/// A client of the events.
struct Client(BodyDataStream);

impl Client {
    async fn open(api: &Router, last_id: Option<&str>) -> Self {
        let mut request = Request::get("/api/v1/events");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = send(api, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self(response.into_body().into_data_stream())
    }

    /// Returns the name, the data and the id of the next event.
    async fn next(&mut self) -> (String, String, String) {
        loop {
            let part = self.0.next().await.unwrap().unwrap();
            let text = String::from_utf8(part.to_vec()).unwrap();
            let field =
                |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
            if let (Some(name), Some(data), Some(id)) = (field("event:"), field("data:"), field("id:")) {
                return (name, data, id);
            }
        }
    }
}

/// An API, and the events of its node once it is watched.
fn watched() -> (Router, broadcast::Sender<Event>) {
    let node = Node::default();
    let events = node.events.clone();
    (peer(Arc::new(node)), events)
}

async fn wait_until_watched(events: &broadcast::Sender<Event>) {
    while events.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
}

fn log(message: impl ToString) -> Event {
    let line = json!({ "time_ms": 1, "level": "info", "target": "t", "message": message.to_string() });
    Event::LogTail(LogTail { lines: vec![serde_json::from_value(line).unwrap()] })
}

#[tokio::test(start_paused = true)]
async fn events_continue_behind_the_last_received_one() {
    let (api, events) = watched();
    let mut client = Client::open(&api, None).await;
    wait_until_watched(&events).await;
    events.send(Event::LibraryChanged).unwrap();
    let (name, data, id) = client.next().await;
    assert_eq!((&*name, &*data), ("library", "{}"));
    drop(client);
    // Nobody is connected, but a client may reconnect.
    events.send(log("missed")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut client = Client::open(&api, Some(&id)).await;
    let (name, data, next) = client.next().await;
    assert!(name == "log" && data.contains("missed"), "{name} {data}");
    let mut other = Client::open(&api, Some(&next)).await;
    events.send(log("new")).unwrap();
    for client in [&mut client, &mut other] {
        assert!(client.next().await.1.contains("new"));
    }
}

#[tokio::test(start_paused = true)]
async fn lost_events_are_reported() {
    let (api, events) = watched();
    let mut slow = Client::open(&api, None).await;
    wait_until_watched(&events).await;
    for number in 0..300 {
        events.send(log(number)).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (name, _, id) = slow.next().await;
    assert_eq!(name, "reset");
    assert!(slow.next().await.1.contains("44"), "the oldest event that is kept");
    let mut resumed = Client::open(&api, Some(&id)).await;
    assert!(resumed.next().await.1.contains("44"));
    for id in ["", "1", "0-5", &format!("1{id}")] {
        assert_eq!(Client::open(&api, Some(id)).await.next().await.0, "reset", "{id:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn node_is_watched_only_for_subscribers() {
    let (api, events) = watched();
    assert_eq!(events.receiver_count(), 0);
    let mut client = Client::open(&api, None).await;
    wait_until_watched(&events).await;
    events.send(Event::LibraryChanged).unwrap();
    let (_, _, id) = client.next().await;
    drop(client);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(events.receiver_count(), 0, "the watch ended");
    let mut client = Client::open(&api, Some(&id)).await;
    assert_eq!(client.next().await.0, "reset");
}

#[tokio::test]
async fn number_of_subscribers_is_limited() {
    let (api, _events) = watched();
    let mut clients = Vec::new();
    for _ in 0..32 {
        clients.push(Client::open(&api, None).await);
    }
    assert_eq!(get(&api, "/api/v1/events").await.status().as_u16(), 503);
    clients.pop();
    Client::open(&api, None).await;
}

#[tokio::test(start_paused = true)]
async fn command_without_reply_times_out() {
    struct Hanging;
    #[async_trait]
    impl Execute for Hanging {
        async fn execute(&self, _: Command, _: Input, _: Events) -> Result<(), Failure> {
            std::future::pending().await
        }
    }
    assert_eq!(get(&tracker(Arc::new(Hanging)), "/api/v1/status").await.status().as_u16(), 504);
}
