// Package protime is a client of myProtime's Protime API: tokens, the delta feed of any collection, and clockings.
//
// What it promises:
//
//   - A cursor is handed out only by a page that was read to its very end, is well formed and names exactly one successor. A
//     body that is cut, empty, no JSON or followed by something else is a *PageError, never "no changes".
//   - A change's data are the bytes that the API sent. Links too are passed on as the API wrote them.
//   - Pages are streams: memory does not grow with their length.
//   - The access token goes to the API's own scheme, host and path, the client secret to the token endpoint, and
//     neither of them, nor a delta's token, into the text of an error.
//   - Errors are typed and carry what the caller needs to act: APIError, TokenError, PageError, LinkError. The client tries
//     nothing again, but for one fresh token after a 401.
//
// A delta is followed by fetching cursors, from DeltaStart on:
//
//	page, err := client.Fetch(ctx, cursor)
//	// for each change, err := page.Next(), until err is io.EOF
//	cursor = page.NextLink() // the first listing goes on
//	if cursor == "" {
//		cursor = page.DeltaLink() // store it, and poll it: each answer replaces it by a new one
//	}
//
// errors.Is(err, ErrGone) means that the delta has expired or was replaced: start a new one.
package protime
