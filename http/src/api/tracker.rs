//! Requests to trackers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use enjambre_control::{Command, InvitationLine, MemberLine, NewInvitation, PeerPage, Reserved, Revoked};
use enjambre_core::{Endpoint, Name};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::extract::{Body, PageSize, Path, Query};
use super::{Api, Routes, WithWarnings, nothing, only};
use crate::problem::Problem;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(peers))
        .routes(routes!(members))
        .routes(routes!(revoke))
        .routes(routes!(invitations, invite))
        .routes(routes!(cancel_invitation))
        .routes(routes!(reserve, release))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PeerParams {
    /// The `next` of the previous page.
    cursor: Option<String>,
    /// Maximum number of peers.
    #[serde(default)]
    #[param(value_type = usize, minimum = 1, maximum = 1000, default = 100)]
    limit: PageSize,
}

/// Lists the peers that are online.
#[utoipa::path(get, path = "/api/v1/peers", tag = "swarm", params(PeerParams), responses((status = 200, body = PeerPage)))]
async fn peers(
    State(api): State<Arc<Api>>,
    Query(PeerParams { cursor, limit }): Query<PeerParams>,
) -> Result<Json<PeerPage>, Problem> {
    api.run(Command::OnlinePeers { cursor, limit: limit.0 }, only!(OnlinePeers)).await?.one().map(Json)
}

/// The members of an invite-only swarm.
#[derive(Serialize, ToSchema)]
struct Members {
    members: Vec<MemberLine>,
}

/// Lists the members of the swarm.
#[utoipa::path(get, path = "/api/v1/members", tag = "swarm", responses((status = 200, body = Members)))]
async fn members(State(api): State<Arc<Api>>) -> Result<Json<Members>, Problem> {
    let members = api.run(Command::Peers, only!(Member)).await?.all()?;
    Ok(Json(Members { members }))
}

/// Revokes the membership of a peer, by its id or a prefix of it.
#[utoipa::path(delete, path = "/api/v1/members/{peer}", tag = "swarm", params(("peer" = String, Path)), responses((status = 200, body = WithWarnings<Revoked>)))]
async fn revoke(
    State(api): State<Arc<Api>>,
    Path(peer): Path<String>,
) -> Result<Json<WithWarnings<Revoked>>, Problem> {
    api.run(Command::Revoke { peer }, only!(Revoked)).await?.one_with_warnings().map(Json)
}

/// The invitations that peers can still use.
#[derive(Serialize, ToSchema)]
struct Invitations {
    invitations: Vec<InvitationLine>,
}

/// Lists the invitations that peers can still use.
#[utoipa::path(get, path = "/api/v1/invitations", tag = "swarm", responses((status = 200, body = Invitations)))]
async fn invitations(State(api): State<Arc<Api>>) -> Result<Json<Invitations>, Problem> {
    let invitations = api.run(Command::Invitations, only!(OpenInvitation)).await?.all()?;
    Ok(Json(Invitations { invitations }))
}

/// An invitation to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct InvitationRequest {
    /// Maximum number of peers that can join.
    #[schema(minimum = 1)]
    uses: u32,
    /// Validity period in milliseconds.
    #[schema(minimum = 1)]
    lifetime_ms: u64,
    /// Whether the peers have download rights only.
    #[serde(default)]
    read_only: bool,
    /// Other trackers of the swarm to include in the invitation.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    trackers: Vec<Endpoint>,
}

/// Creates an invitation, which contains a secret.
#[utoipa::path(post, path = "/api/v1/invitations", tag = "swarm", request_body = InvitationRequest, responses((status = 201, body = WithWarnings<NewInvitation>)))]
async fn invite(
    State(api): State<Arc<Api>>,
    Body(InvitationRequest { uses, lifetime_ms, read_only, trackers }): Body<InvitationRequest>,
) -> Result<(StatusCode, Json<WithWarnings<NewInvitation>>), Problem> {
    let command = Command::Invite { uses, lifetime_ms, read_only, trackers };
    let created = api.run(command, only!(Invitation)).await?.one_with_warnings()?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Cancels an invitation, by its id or a prefix of it.
#[utoipa::path(delete, path = "/api/v1/invitations/{id}", tag = "swarm", params(("id" = String, Path)), responses((status = 204)))]
async fn cancel_invitation(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    api.run(Command::CancelInvitation { id }, nothing).await?.all()?;
    Ok(StatusCode::NO_CONTENT)
}

/// The peer for which a name is reserved.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reservation {
    /// Its id, or a prefix of it.
    peer: String,
}

/// Reserves a name for one peer.
#[utoipa::path(put, path = "/api/v1/reservations/{name}", tag = "swarm", params(("name" = String, Path)), request_body = Reservation, responses((status = 200, body = Reserved)))]
async fn reserve(
    State(api): State<Arc<Api>>,
    Path(name): Path<Name>,
    Body(Reservation { peer }): Body<Reservation>,
) -> Result<Json<Reserved>, Problem> {
    api.run(Command::Reserve { name, peer: Some(peer) }, only!(Reserved)).await?.one().map(Json)
}

/// Releases a reserved name.
#[utoipa::path(delete, path = "/api/v1/reservations/{name}", tag = "swarm", params(("name" = String, Path)), responses((status = 204)))]
async fn release(State(api): State<Arc<Api>>, Path(name): Path<Name>) -> Result<StatusCode, Problem> {
    api.run(Command::Reserve { name, peer: None }, nothing).await?.all()?;
    Ok(StatusCode::NO_CONTENT)
}
