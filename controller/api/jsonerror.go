package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// JSONError says what is wrong with a document that could not be decoded, in the words of who wrote it instead of Go's.
func JSONError(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var long *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is cut short")
	case errors.As(err, &kind):
		article := "a"
		if strings.ContainsAny(kind.Value[:1], "ao") { // array, object
			article = "an"
		}
		return fmt.Errorf("%s cannot be %s %s", orDocument(kind.Field), article, kind.Value)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no JSON at byte %d", syntax.Offset)
	case errors.As(err, &long):
		return fmt.Errorf("it is longer than %d bytes", long.Limit)
	case strings.HasPrefix(err.Error(), "json: "):
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return err
}

func orDocument(field string) string {
	if field == "" {
		return "the document"
	}
	return field
}
