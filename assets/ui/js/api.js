// Requests to the studio's own server. An ApiError carries the one sentence that the server gave.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answer(response) {
  const text = await response.text();
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    body = null;
  }
  if (!response.ok) throw new ApiError(body?.error || `the studio answered ${response.status}`, response.status);
  return body;
}

// A request that is sent twice in one breath, as a double click does, carries one key: the studio makes one job of it.
const BREATH = 600;
const sent = new Map();

function keyOf(path, body) {
  const now = performance.now();
  for (const [what, one] of sent) if (now - one.at > BREATH) sent.delete(what);
  const what = `${path} ${JSON.stringify(body)}`;
  if (!sent.has(what)) sent.set(what, { key: Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join(""), at: now });
  return sent.get(what).key;
}

async function send(method, path, body) {
  const options = { method, headers: {} };
  if (method === "POST" && path.startsWith("/jobs/")) options.headers["idempotency-key"] = keyOf(path, body);
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(`/api${path}`, options);
  } catch {
    throw new ApiError("the studio does not answer; is it still running in its terminal?", 0);
  }
  return answer(response);
}

export const get = (path) => send("GET", path);
export const post = (path, body = {}) => send("POST", path, body);
export const patch = (path, body) => send("PATCH", path, body);
export const put = (path, body) => send("PUT", path, body);
export const del = (path) => send("DELETE", path);
export const id = encodeURIComponent;

// Files as one multipart request; `progress` hears the share sent, 0 to 1.
export function upload(path, files, progress = () => {}) {
  const form = new FormData();
  for (const [name, file] of files) form.append("files", file, name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api${path}`);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError("the upload broke off; try again", 0));
    request.onload = () => answer(new Response(request.responseText, { status: request.status })).then(resolve, reject);
    request.send(form);
  });
}
