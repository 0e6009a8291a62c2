/** A WebSocket to Moongate that comes back. It begins to connect when it is made. */
export class Moongate {
  /**
   * @param url where clients connect, `wss://…`; or several such, of which each attempt after an end takes the next
   * @throws SyntaxError where that is no address of a WebSocket
   */
  constructor(url: string | string[], options?: Options);

  /** `waiting` is between two attempts; `closed` stays so until `connect()`. */
  readonly state: "connecting" | "open" | "waiting" | "closed";

  /** The id of this connection, once the gateway has told it; each connection has its own. */
  readonly clientId: string | null;

  /** Where it is connected, or was last tried. */
  readonly url: string;

  on<Name extends keyof Events>(name: Name, listener: Events[Name]): void;
  off<Name extends keyof Events>(name: Name, listener: Events[Name]): void;

  /**
   * Says something: text or bytes as they are, an object or array as its JSON.
   * @returns true when the browser has taken it, or it waits for the next connection; false when it is lost, as too much
   * waits already, or nothing will come back
   */
  send(data: string | ArrayBuffer | ArrayBufferView | Blob | object): boolean;

  /** Connects now, where it is closed or waits. */
  connect(): void;

  /**
   * Ends the connection, and stays away. What waits is dropped.
   * @param code 1000 (usual), or 3000 to 4999
   * @param reason at most 123 bytes
   */
  close(code?: number, reason?: string): void;
}

export interface Options {
  /**
   * The token for `AUTH`: sent as `?token=`. A function is asked anew for each attempt, and may answer later. Without a
   * token it connects without; a function that fails is a failed attempt.
   */
  token?: string | (() => Token | PromiseLike<Token>);
  /** The first wait is at most so long, then they double; milliseconds, usually 1,000. */
  minDelay?: number;
  /** No wait is longer, but what `retry` says; milliseconds, usually 30,000. */
  maxDelay?: number;
  /** An attempt, its token included, that takes longer has failed; milliseconds, usually 20,000. */
  timeout?: number;
  /** How many messages wait for a connection, at the most; usually 100. */
  queue?: number;
  /** For a gateway with `PING_DATA`; see the README. */
  heartbeat?: Heartbeat;
  /**
   * Asked after each end: milliseconds until the next attempt, null to stay away, nothing to leave it at `close.delay`.
   */
  retry?: (close: Close) => number | null | void;
}

export type Token = string | null | undefined;

export interface Heartbeat {
  /** What the gateway has in `PING_DATA`. It is no message for listeners. */
  ping: string;
  /** What is answered, if anything. */
  pong?: string;
  /** After a silence of so long, and a second, the connection is given up; milliseconds, usually 60,000. */
  timeout?: number;
}

export interface Events {
  /** The gateway told the id of this connection: the first message of each, and a new id each time. */
  init: (init: Init) => void;
  /** It is connected. What is sent here goes ahead of what has waited. */
  open: () => void;
  /** A message as it came. */
  message: (data: string | ArrayBuffer) => void;
  /** The same, parsed, where it is JSON. */
  json: (value: any) => void;
  /** A connection has ended, or an attempt has failed. */
  close: (close: Close) => void;
}

export interface Init {
  type: "init";
  client_id: string;
  /** What else stands in `INIT_MESSAGE`. */
  [field: string]: unknown;
}

export interface Close {
  /** As in the close frame; 1006 without one, as after a handshake that was refused: browsers do not tell its status. */
  code: number;
  /** As in the close frame; ours, with 1006: `timeout`, `silent`, `offline`, `left`, `no token`. */
  reason: string;
  /** What the token's function failed with. */
  error?: unknown;
  /** How many ends there were since a connection that held for ten seconds, this one included. */
  attempts: number;
  /** Milliseconds until the next attempt; null where there will be none. */
  delay: number | null;
}
