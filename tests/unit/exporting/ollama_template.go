// Renders templates as Ollama does: Go's text/template over .System, .Messages and .Prompt.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type job struct {
	Template, System, Prompt string
	Messages                 []*message
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := make([]string, len(jobs))
	for i, j := range jobs {
		var out strings.Builder
		values := map[string]any{"System": j.System, "Prompt": j.Prompt, "Messages": j.Messages}
		if err := template.Must(template.New("").Parse(j.Template)).Execute(&out, values); err != nil {
			panic(err)
		}
		texts[i] = out.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
