//! The API: the commands of the node as requests with JSON, under `/api/v1`, and its OpenAPI document.
//!
//! Each handler runs one [`Command`]. The routes and their description come from the same attributes.

mod downloads;
mod events;
mod extract;
mod node;
mod page;
mod peer;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, Response};
use axum::routing::get;
use bytes::Bytes;
use enjambre_control::{Command, Event, Execute, Failure, no_input, run_locally};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Info, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::problem::{Problem, ProblemDetails};
use events::EventHub;

/// Maximum size of the body of a request, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Maximum duration of a command that does not read or write content.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The state of the handlers.
struct Api {
    commands: Arc<dyn Execute>,
    events: Arc<EventHub>,
}

/// The routes of a role.
type Routes = OpenApiRouter<Arc<Api>>;

/// The API of a peer.
pub fn peer(commands: Arc<dyn Execute>) -> Router {
    routes(commands, node::routes().merge(peer::routes()).merge(downloads::routes()))
}

/// The API of a tracker.
pub fn tracker(commands: Arc<dyn Execute>) -> Router {
    routes(commands, node::routes().merge(tracker::routes()))
}

fn routes(commands: Arc<dyn Execute>, routes: Routes) -> Router {
    let (routes, document) = described(routes);
    let document = serde_json::to_value(document).expect("the document serializes");
    let (page, json) = (page::render(&document), Bytes::from(document.to_string()));
    let content_security = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    let page = async move || ([(header::CONTENT_SECURITY_POLICY, content_security)], Html(page));
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], json);
    let events = EventHub::new(Arc::clone(&commands));
    routes
        .with_state(Arc::new(Api { commands, events }))
        .route("/api/", get(page))
        .route("/api/openapi.json", get(json))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(async |mut response: Response| {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }))
}

/// Separates the routes from their description, which it completes.
fn described(routes: Routes) -> (Router<Arc<Api>>, OpenApi) {
    let info = Info::new("Enjambre", env!("CARGO_PKG_VERSION"));
    let whole = Routes::with_openapi(OpenApiBuilder::new().info(info).build()).merge(routes);
    let (routes, mut document) = whole.split_for_parts();
    let components = document.components.get_or_insert_default();
    components.schemas.insert(ProblemDetails::name().into_owned(), ProblemDetails::schema());
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", token);
    let not_required = SecurityRequirement::default();
    document.security = Some(vec![not_required, SecurityRequirement::new("token", [] as [&str; 0])]);
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemDetails::name()))).build();
    let response = ResponseBuilder::new()
        .description("The request failed.")
        .content("application/problem+json", problem)
        .build();
    for operation in document.paths.paths.values_mut().flat_map(|item| {
        let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        methods.into_iter().flatten().collect::<Vec<&mut Operation>>()
    }) {
        operation.responses.responses.insert("default".to_owned(), RefOr::T(response.clone()));
    }
    (routes, document)
}

/// What a command reported.
struct Outcome<T> {
    found: Vec<T>,
    warnings: Vec<String>,
    result: Result<(), Failure>,
}

impl<T> Outcome<T> {
    /// The results and warnings of a command that can succeed for some files and fail for others.
    fn partial(mut self) -> Result<(Vec<T>, Vec<String>), Problem> {
        match self.result {
            Err(failure) if self.found.is_empty() => return Err(failure.into()),
            Err(failure) => self.warnings.push(failure.message),
            Ok(()) => {}
        }
        Ok((self.found, self.warnings))
    }

    fn all(self) -> Result<Vec<T>, Problem> {
        self.result?;
        Ok(self.found)
    }

    fn one(self) -> Result<T, Problem> {
        self.one_with_warnings().map(|with| with.result)
    }

    fn one_with_warnings(mut self) -> Result<WithWarnings<T>, Problem> {
        self.result?;
        let missing = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the node sent no result");
        let result = self.found.pop().ok_or_else(missing)?;
        Ok(WithWarnings { result, warnings: self.warnings })
    }
}

/// A result with problems that did not stop the command.
#[derive(Serialize, ToSchema)]
struct WithWarnings<T> {
    #[serde(flatten)]
    result: T,
    /// Problems that did not stop the command.
    warnings: Vec<String>,
}

impl Api {
    /// Runs a command and picks events. The command is cancelled when the client is gone.
    async fn run<T: Send>(
        &self,
        command: Command,
        pick: impl FnMut(Event) -> Option<T> + Send,
    ) -> Result<Outcome<T>, Problem> {
        let too_late = |_| {
            let text = format!("no reply of the node within {} s", COMMAND_TIMEOUT.as_secs());
            Problem::new(StatusCode::GATEWAY_TIMEOUT, text)
        };
        timeout(COMMAND_TIMEOUT, self.run_long(command, pick)).await.map_err(too_late)
    }

    /// As [`Api::run`], for a command that takes any time.
    async fn run_long<T: Send>(
        &self,
        command: Command,
        mut pick: impl FnMut(Event) -> Option<T> + Send,
    ) -> Outcome<T> {
        let (mut found, mut warnings) = (Vec::new(), Vec::new());
        let mut show = |event| match event {
            Event::Warning { message } => warnings.push(message),
            event => found.extend(pick(event)),
        };
        let result = run_locally(&*self.commands, command, no_input(), &mut show).await;
        Outcome { found, warnings, result }
    }
}

/// Picks events of one variant.
macro_rules! only {
    ($variant:ident) => {
        |event| match event {
            enjambre_control::Event::$variant(content) => Some(content),
            _ => None,
        }
    };
}
use only;

/// For commands without results.
fn nothing(_: Event) -> Option<()> {
    None
}
