// Talks to the server: JSON, pictures behind a key, and server-sent events of an answer to POST.

const KEY = "dbray-key"; // for this tab only

// Headers hold bytes: those of the key in UTF-8, which are what its digest was made from.
const bearer = (text) => `Bearer ${String.fromCharCode(...new TextEncoder().encode(text))}`;

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  // Kept only once it has worked; throws what the server answered otherwise.
  async set(text) {
    await call("/v1/models?limit=1", { headers: { authorization: bearer(text) } });
    sessionStorage.setItem(KEY, text);
  },
};

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message || `The server answered ${status}.`);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const own = key.get() ? { authorization: bearer(key.get()) } : {};
  const response = await fetch(path, { ...options, headers: { ...own, ...options.headers } });
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return response;
}

export const getJson = async (path) => (await call(path)).json();

// With the revision, so that what a browser has kept is never that of another one.
export const previewPath = (model, name) => {
  const revision = encodeURIComponent(`${model.id}@${model.dbray.revision}`);
  return `/v1/models/${revision}/previews/${encodeURIComponent(name)}`;
};

const pictures = new Map(); // path -> promise of an object URL

export function picture(path) {
  if (!pictures.has(path)) {
    const loading = call(path).then((r) => r.blob()).then((blob) => URL.createObjectURL(blob));
    loading.catch(() => pictures.delete(path));
    pictures.set(path, loading);
  }
  return pictures.get(path);
}

// A body as JSON. Its seed is text, for numbers of JavaScript are exact up to 2^53 only.
export function toJson(body) {
  const { seed, ...others } = body;
  return `${JSON.stringify(others).slice(0, -1)},"seed":${BigInt(seed)}}`;
}

// Calls onEvent(data) for every event; resolves with the response's headers when all are there.
export async function stream(body, onEvent, signal) {
  const response = await call("/v1/images/generations", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: toJson({ ...body, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return response.headers;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((text) => text.startsWith("data: "));
      if (!line) continue;
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new ApiError(500, data);
      onEvent(data);
    }
  }
}
